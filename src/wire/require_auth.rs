//! `require_auth`: which ways of logging in are accepted (`fe-auth.c:check_expected_areq`, libpq 16+).

/// A way of logging in, as `require_auth` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    Password,
    Md5,
    Gss,
    Sspi,
    Scram,
    OAuth,
    /// The server asks for nothing: trust, peer, ident, certificates.
    None,
}

const NAMES: [(&str, AuthMethod); 7] = [
    ("password", AuthMethod::Password),
    ("md5", AuthMethod::Md5),
    ("gss", AuthMethod::Gss),
    ("sspi", AuthMethod::Sspi),
    ("scram-sha-256", AuthMethod::Scram),
    ("oauth", AuthMethod::OAuth),
    ("none", AuthMethod::None),
];

impl AuthMethod {
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, method)| *method == self).map_or("none", |(name, _)| name)
    }
}

/// The accepted ways; by default all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequireAuth {
    allowed: Vec<AuthMethod>,
}

impl Default for RequireAuth {
    fn default() -> RequireAuth {
        RequireAuth { allowed: NAMES.iter().map(|(_, method)| *method).collect() }
    }
}

impl RequireAuth {
    /// A list with commas: of what is accepted, or, each with `!`, of what is not. The error says what is wrong.
    pub fn parse(text: &str) -> Result<RequireAuth, String> {
        let mut named = Vec::new();
        let mut negated = None;
        for word in text.split(',').map(str::trim) {
            let (not, name) = word.strip_prefix('!').map_or((false, word), |name| (true, name));
            let method = NAMES.iter().find(|(known, _)| *known == name).map(|(_, method)| *method);
            let method = method.ok_or_else(|| {
                let known = NAMES.map(|(name, _)| name).join(", ");
                format!("expected a list of {known}, or of the same each with \"!\", found {word:?}")
            })?;
            if *negated.get_or_insert(not) != not {
                return Err("methods with and without \"!\" cannot be mixed".to_owned());
            }
            if named.contains(&method) {
                return Err(format!("{name} is listed twice"));
            }
            named.push(method);
        }
        let allowed = match negated {
            Some(true) => RequireAuth::default().allowed.into_iter().filter(|m| !named.contains(m)).collect(),
            _ => named,
        };
        Ok(RequireAuth { allowed })
    }

    pub fn allows(&self, method: AuthMethod) -> bool {
        self.allowed.contains(&method)
    }

    /// What is accepted, for messages.
    pub fn describe(&self) -> String {
        self.allowed.iter().map(|method| method.name()).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_both_kinds() {
        use AuthMethod as A;
        let allowed = |text: &str| RequireAuth::parse(text).unwrap();
        assert!(RequireAuth::default().allows(A::None) && RequireAuth::default().allows(A::Md5));
        let scram = allowed("scram-sha-256");
        assert!(scram.allows(A::Scram) && !scram.allows(A::Password) && !scram.allows(A::None));
        let not = allowed("!password, !none");
        assert!(!not.allows(A::Password) && !not.allows(A::None) && not.allows(A::Scram) && not.allows(A::Md5));
        assert_eq!(allowed("md5,scram-sha-256").describe(), "md5,scram-sha-256");
        for text in ["", "scram", "md5,!none", "md5,md5", "md5,", "!"] {
            assert!(RequireAuth::parse(text).is_err(), "{text}");
        }
    }
}
