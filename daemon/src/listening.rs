//! Listeners of the control side. A daemon comes back to the ports that it had, and whoever held one for a moment lets go of it: its
//! last run, or a process that is just being started by another.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long somebody may have an address that is ours.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Listens, for a thread that waits.
pub(crate) fn bind_waiting(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let limit = Instant::now() + PATIENCE;
    loop {
        match std::net::TcpListener::bind(address) {
            Err(error) if is_taken(&error) && Instant::now() < limit => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// Listens, for a task.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let limit = Instant::now() + PATIENCE;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Err(error) if is_taken(&error) && Instant::now() < limit => tokio::time::sleep(PAUSE).await,
            result => return result,
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_let_go_is_taken() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = holder.local_addr().expect("bound");
        let waiting = std::thread::spawn(move || bind_waiting(address));
        let task = tokio::spawn(bind(address));
        tokio::time::sleep(10 * PAUSE).await;
        assert!(!waiting.is_finished() && !task.is_finished(), "both wait");
        drop(holder);
        let listener = waiting.join().expect("no panic").expect("it is free");
        assert!(!task.is_finished(), "it is taken again");
        drop(listener);
        task.await.expect("no panic").expect("it is free");
    }
}
