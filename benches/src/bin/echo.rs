//! `cargo run --release -p benches --bin echo`: what one reactor reaches when it answers from nothing, over loopback, with
//! the server on core 0 and the load on core 1. Prints one line for each number of connections and depth.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use benches::echo::{COMMAND, DATA, HEADER, serve};
use clap::Parser;
use reactor::{Config, Reactor, Stats, TcpStream, spawn};

/// Measures the echo server.
#[derive(Parser)]
struct Arguments {
    /// Seconds for each line.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The longest spin of both reactors, in microseconds; 0 never spins.
    #[arg(long, default_value_t = 50)]
    busy_poll: u64,
    /// TCP congestion control; the system's by default.
    #[arg(long)]
    congestion: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("connections  depth    kIOPS   avg µs   ours ns/op   kernel ns/op   completions/turn");
    for (connections, depth) in [(1, 1), (1, 32), (8, 32), (1, 128)] {
        measure(&arguments, connections, depth)?;
    }
    Ok(())
}

fn measure(arguments: &Arguments, connections: usize, depth: usize) -> anyhow::Result<()> {
    let config = |name: &str, core| Config {
        name: name.to_owned(),
        core: Some(core),
        busy_poll: Duration::from_micros(arguments.busy_poll),
        congestion: arguments.congestion.clone(),
        ..Config::default()
    };
    let server = Reactor::start(config("server", 0)).context("the server's reactor")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    server.handle().post(move || drop(sender.send(serve(any))))?;
    let address = receiver.recv()??;
    let seconds = arguments.seconds;
    let stats = server.stats().clone();
    let done = Reactor::run(&config("load", 1), async move {
        let done = Rc::new(Cell::new(0_u64));
        for _ in 0..connections {
            spawn(load(TcpStream::connect(address).await?, depth, Rc::clone(&done)));
        }
        reactor::sleep(Duration::from_millis(300)).await;
        let before = (Sample::take(&stats), done.get());
        reactor::sleep(Duration::from_secs(seconds)).await;
        anyhow::Ok((before, (Sample::take(&stats), done.get())))
    })?;
    let (before, after) = done?;
    let operations = (after.1 - before.1) as f64;
    let time = after.0.at - before.0.at;
    let kernel = after.0.kernel - before.0.kernel;
    let waiting = after.0.waited - before.0.waited;
    let ours = time.saturating_sub(kernel + waiting);
    println!(
        "{connections:11} {depth:6} {:8.1} {:8.1} {:12.0} {:14.0} {:18.1}",
        operations / time.as_secs_f64() / 1e3,
        time.as_secs_f64() * 1e6 * (connections * depth) as f64 / operations,
        ours.as_nanos() as f64 / operations,
        kernel.as_nanos() as f64 / operations,
        (after.0.completions - before.0.completions) as f64 / (after.0.turns - before.0.turns) as f64,
    );
    server.stop()?;
    Ok(())
}

/// Keeps `depth` commands in flight on a connection.
async fn load(stream: TcpStream, depth: usize, done: Rc<Cell<u64>>) -> std::io::Result<()> {
    let command = [0; COMMAND];
    (0..depth).for_each(|_| stream.push_copy(&command));
    stream.flush();
    let mut received = 0;
    loop {
        let chunk = stream.receive().await?;
        if chunk.is_empty() {
            return Ok(());
        }
        received += chunk.len();
        let answers = received / (HEADER + DATA);
        received %= HEADER + DATA;
        done.set(done.get() + answers as u64);
        (0..answers).for_each(|_| stream.push_copy(&command));
        stream.flush();
    }
}

struct Sample {
    at: Instant,
    kernel: Duration,
    waited: Duration,
    turns: u64,
    completions: u64,
}

impl Sample {
    fn take(stats: &Stats) -> Self {
        Self {
            at: Instant::now(),
            kernel: stats.in_kernel(),
            waited: stats.slept() + stats.spun(),
            turns: stats.turns(),
            completions: stats.completions(),
        }
    }
}
