//! What belongs to a reactor cannot leave its thread: this file compiles only while that is so.

mod support;

use std::time::Duration;

use reactor::{Buffer, DetachedStream, Disk, Handle, JoinHandle, Received, Sleep, Slice, TcpListener, TcpStream};

/// Has one implementation for what is not `Send`, two for what is: then which one is meant cannot be inferred.
trait NotSend<Which> {
    const HOLDS: () = ();
}

struct OfSend;

impl<T: ?Sized> NotSend<()> for T {}
impl<T: ?Sized + Send> NotSend<OfSend> for T {}

fn not_send<T: NotSend<Which>, Which>(_value: &T) {}

fn send<T: Send>() {}

#[test]
fn only_handles_and_detached_streams_cross_threads() {
    let () = <Buffer as NotSend<_>>::HOLDS;
    let () = <Slice as NotSend<_>>::HOLDS;
    let () = <Received as NotSend<_>>::HOLDS;
    let () = <Disk as NotSend<_>>::HOLDS;
    let () = <TcpStream as NotSend<_>>::HOLDS;
    let () = <TcpListener as NotSend<_>>::HOLDS;
    let () = <Sleep as NotSend<_>>::HOLDS;
    let () = <JoinHandle<()> as NotSend<_>>::HOLDS;
    send::<Handle>();
    send::<DetachedStream>();
}

#[test]
fn futures_of_operations_stay_too() {
    support::run(async {
        not_send(&TcpStream::connect(support::any_port()));
        not_send(&reactor::files::read("/proc/self/status".as_ref()));
        not_send(&reactor::timeout(Duration::ZERO, std::future::pending::<()>()));
    });
}
