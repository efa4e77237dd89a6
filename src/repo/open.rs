//! Opening a bucket by its URL, with credentials and settings from the environment.

use std::str::FromStr;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientOptions, RetryConfig};
use url::Url;

use super::cloud::{CloudBackend, Paged, Timeouts};
use super::names;
use crate::error::{Error, Kind, Result};

/// The environment, asked by name.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Variables that object_store understands under the same names.
const S3: [&str; 27] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ALLOW_HTTP",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_CHECKSUM_ALGORITHM",
    "AWS_UNSIGNED_PAYLOAD",
    "AWS_SKIP_SIGNATURE",
    "AWS_S3_EXPRESS",
    "AWS_REQUEST_PAYER",
    "AWS_METADATA_ENDPOINT",
    "AWS_IMDSV1_FALLBACK",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_SSE_BUCKET_KEY_ENABLED",
];
const GCS: [&str; 6] = [
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BASE_URL",
    "GOOGLE_SKIP_SIGNATURE",
];
const AZURE: [&str; 15] = [
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_TENANT_ID",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_STORAGE_USE_EMULATOR",
    "AZURE_ALLOW_HTTP",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_MSI_ENDPOINT",
    "AZURE_OBJECT_ID",
    "AZURE_USE_AZURE_CLI",
];

/// A bucket; `None` for a scheme or a shape of URL that is not one.
pub(super) fn open(url: &Url, env: Env<'_>, timeouts: Timeouts) -> Result<Option<CloudBackend>> {
    let Some(bucket) = url.host_str().filter(|h| !h.is_empty()) else { return Ok(None) };
    let prefix = url.path().trim_matches('/');
    if url.port().is_some() || !(prefix.is_empty() || names::valid_name(prefix)) {
        return Ok(None);
    }
    let store: object_store::Result<Arc<dyn Paged>> = match url.scheme() {
        "s3" => {
            demand_endpoint(env)?;
            demand_tls_or_permission(env)?;
            open_s3(bucket, env).map(|s| Arc::new(s) as _)
        }
        "gs" => {
            ready_tls();
            let builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket);
            let builder = settings::<GoogleConfigKey>(&GCS, env).fold(builder, |b, (k, v)| b.with_config(k, v));
            builder.with_retry(no_retries()).with_client_options(client(false)).build().map(|s| Arc::new(s) as _)
        }
        "az" => {
            ready_tls();
            let http = allowed(env, "AZURE_ALLOW_HTTP") || allowed(env, "AZURE_STORAGE_USE_EMULATOR");
            let builder = MicrosoftAzureBuilder::new().with_container_name(bucket).with_client_options(client(http));
            let builder = settings::<AzureConfigKey>(&AZURE, env).fold(builder, |b, (k, v)| b.with_config(k, v));
            builder.with_retry(no_retries()).build().map(|s| Arc::new(s) as _)
        }
        _ => return Ok(None),
    };
    let store = store.map_err(|e| {
        Error::new(Kind::Repository, format!("cannot open {url}: {e}"))
            .hint("Check the credentials and settings of the store in the environment.")
    })?;
    Ok(Some(CloudBackend::new(store, prefix.to_owned(), timeouts)))
}

fn open_s3(bucket: &str, env: Env<'_>) -> object_store::Result<object_store::aws::AmazonS3> {
    ready_tls();
    // Whole-object checksums travel with every put; AWS_CHECKSUM_ALGORITHM chooses another.
    let builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_client_options(client(allowed(env, "AWS_ALLOW_HTTP")))
        .with_checksum_algorithm(Checksum::CRC64NVME)
        .with_disable_bulk_delete(true)
        .with_retry(no_retries());
    settings::<AmazonS3ConfigKey>(&S3, env).fold(builder, |b, (k, v)| b.with_config(k, v)).build()
}

/// An endpoint that is none would fail at each request, as if the network were down, and be waited for in vain.
fn demand_endpoint(env: Env<'_>) -> Result<()> {
    for key in ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
        let Some(endpoint) = env(key).filter(|endpoint| !endpoint.is_empty()) else { continue };
        let parsed = Url::parse(&endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if parsed.is_none_or(|url| url.host_str().is_none()) {
            return Err(Error::new(Kind::Usage, format!("{key} is {endpoint:?}, expected a URL"))
                .hint("Write it as https://host:port."));
        }
    }
    Ok(())
}

/// A plain-text endpoint without the permission for it would only fail at the first request, as if the network were down.
fn demand_tls_or_permission(env: Env<'_>) -> Result<()> {
    let plain = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"].iter().filter_map(|k| env(k));
    let plain = plain.into_iter().find(|e| e.starts_with("http://"));
    match plain {
        Some(endpoint) if !allowed(env, "AWS_ALLOW_HTTP") => {
            Err(Error::new(Kind::Usage, format!("endpoint {endpoint} is not encrypted"))
                .hint("Use https, or set AWS_ALLOW_HTTP=true if the network is yours."))
        }
        _ => Ok(()),
    }
}

fn allowed(env: Env<'_>, key: &str) -> bool {
    env(key).is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "on" | "yes" | "y"))
}

fn settings<'a, K: FromStr>(keys: &'a [&'a str], env: Env<'a>) -> impl Iterator<Item = (K, String)> + 'a {
    keys.iter().filter_map(move |key| {
        let value = env(key).filter(|v| !v.is_empty())?;
        Some((K::from_str(&key.to_ascii_lowercase()).ok()?, value))
    })
}

/// Retries are ours: the crate's own would turn a lost answer into "already exists" without telling.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..Default::default() }
}

/// The crate's limit of 30 s for a whole request would cut off large puts on slow lines; ours grows with the size.
fn client(allow_http: bool) -> ClientOptions {
    ClientOptions::new().with_timeout_disabled().with_allow_http(allow_http)
}

/// reqwest takes the process's default provider of ciphers; whoever set one first wins.
fn ready_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_none_is_refused_at_once() {
        let asked = |endpoint: &str| demand_endpoint(&|key| (key == "AWS_ENDPOINT_URL").then(|| endpoint.to_owned()));
        for good in ["", "https://s3.example", "http://127.0.0.1:9000", "https://[::1]:9000/path"] {
            assert!(asked(good).is_ok(), "{good}");
        }
        for bad in ["s3.example", "localhost:9000", "https//s3.example", "ftp://s3.example", "https://", "https://a b"]
        {
            let error = asked(bad).expect_err(bad);
            assert!(!error.is_transient() && error.kind() == Kind::Usage, "{bad}: {error}");
        }
    }
}
