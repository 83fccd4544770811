//! A link of a given rate and delay, where the machine has only its loopback: a relay of TCP connections that lets bytes
//! through when they would have come over such a link.

use anyhow::{Context, Result};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a link does to bytes, each way of each connection.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub bytes_per_s: f64,
    /// On top of what the relay takes by itself.
    pub delay: Duration,
}

/// In front of one listener. Its threads end with its connections and with the process.
pub struct Relay {
    pub address: SocketAddr,
    shape: Arc<Mutex<Shape>>,
}

/// As much as is read at once, and how many such parts may be on their way.
const PART_BYTES: usize = 64 << 10;
const PARTS_MAX: usize = 64;

impl Relay {
    pub fn to(target: SocketAddr, shape: Shape) -> Result<Relay> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen on loopback")?;
        let address = listener.local_addr().context("cannot tell where it listens")?;
        let shape = Arc::new(Mutex::new(shape));
        let relay = Relay { address, shape: Arc::clone(&shape) };
        thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                // Who dials too early finds a closed connection, and tries again.
                if let Ok(far) = TcpStream::connect(target) {
                    let _ = join(near, far, &shape);
                }
            }
        });
        Ok(relay)
    }

    /// From now on.
    pub fn set(&self, shape: Shape) {
        *self.shape.lock().unwrap_or_else(PoisonError::into_inner) = shape;
    }
}

fn join(near: TcpStream, far: TcpStream, shape: &Arc<Mutex<Shape>>) -> std::io::Result<()> {
    for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        from.set_nodelay(true)?;
        to.set_nodelay(true)?;
        let (parts, due) = mpsc::sync_channel(PARTS_MAX);
        let shape = Arc::clone(shape);
        thread::spawn(move || take(from, &shape, &parts));
        thread::spawn(move || give(to, &due));
    }
    Ok(())
}

/// Says of every part when its last byte has passed the link.
fn take(mut from: TcpStream, shape: &Mutex<Shape>, parts: &SyncSender<(Instant, Vec<u8>)>) {
    let mut free = Instant::now();
    let mut bytes = vec![0; PART_BYTES];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let shape = *shape.lock().unwrap_or_else(PoisonError::into_inner);
        free = free.max(Instant::now()) + Duration::from_secs_f64(count as f64 / shape.bytes_per_s);
        if parts.send((free + shape.delay, bytes[..count].to_vec())).is_err() {
            return;
        }
    }
}

fn give(mut to: TcpStream, parts: &Receiver<(Instant, Vec<u8>)>) {
    sleep_finely();
    while let Ok((due, bytes)) = parts.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Linux lets a thread sleep 50 us too long unless it is told; where it cannot be told the link is slower, which is
/// measured.
fn sleep_finely() {
    if let Some(thread) =
        fs::read_link("/proc/thread-self").ok().and_then(|path| path.file_name()?.to_str().map(str::to_owned))
    {
        let _ = fs::write(format!("/proc/{thread}/timerslack_ns"), "1000");
    }
}
