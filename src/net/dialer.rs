//! Another way to a server than the sockets of the operating system: a simulated network.

use std::fmt;
use std::io;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::link::Stream;

type Dialed = BoxFuture<'static, io::Result<Box<dyn Stream>>>;

/// Makes the byte streams that connections run over.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn() -> Dialed + Send + Sync>);

impl Dialer {
    /// `dial` is called for every connection, and its errors are those of a server that cannot be reached.
    pub fn new<F, S>(dial: impl Fn() -> F + Send + Sync + 'static) -> Dialer
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: Stream + 'static,
    {
        Dialer(Arc::new(move || {
            let dialing = dial();
            async move { dialing.await.map(|stream| Box::new(stream) as Box<dyn Stream>) }.boxed()
        }))
    }

    pub(super) async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        (self.0)().await
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}
