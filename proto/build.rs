//! Compiles worker.proto with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["flotilla/v1/worker.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    println!("cargo:rerun-if-changed=flotilla");
    Ok(())
}
