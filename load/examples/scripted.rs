//! The scripted server of the tests as a program, so that tools that are not ours can ask it too:
//! `scripted ADDRESS TTFT_MS ITL_MS`. It says where it listens, and goes on until it is ended.

#[path = "../tests/support/scripted.rs"]
mod scripted;

use scripted::{Script, Scripted};
use std::time::Duration;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, ttft, itl] = args.as_slice() else { panic!("scripted ADDRESS TTFT_MS ITL_MS") };
    let ms = |text: &String| Duration::from_millis(text.parse().expect("milliseconds"));
    let script = Script { ttft: ms(ttft), itl: ms(itl), ..Script::quick() };
    let server = Scripted::listen(address, script).await;
    println!("{}", server.url);
    std::future::pending::<()>().await;
}
