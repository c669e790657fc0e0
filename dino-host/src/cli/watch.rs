//! The command `watch`: the page of a run while it goes on, on this machine alone.

use super::shared::{Shared, open, start};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::report::Live;
use clap::Args;
use std::path::PathBuf;
use tiny_http::{Header, Method, Request, Response, Server};

#[derive(Args)]
pub struct Watch<O: Args> {
    /// Folder of a run
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where the run's images are now [default: where they were]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Port on this machine that the browser asks; 0 = any that is free
    #[arg(long, default_value_t = 8765, value_name = "N")]
    port: u16,
    /// Most training images used for neighbors and confusion, so that looking does not slow the run down
    #[arg(long, default_value_t = 1000, value_name = "N")]
    images: usize,
    #[command(flatten)]
    shared: Shared<O>,
}

/// Runs the command `watch`, which ends with Ctrl-C.
///
/// # Errors
/// The device is not there, the port is taken, or the folder has no run.
pub fn run<D: Device>(args: Watch<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let mut live = Live::new(args.dir, args.images.max(1));
    let data = args.data.as_deref();
    let mut page = || {
        live.page::<D>(&args.shared.device, |recorded, config| {
            let (Some(data), Some(config)) = (data.or(recorded), config) else {
                return Err(Error::new("there is no run.json that names them").hint("--data PATH names the images"));
            };
            open(data, config)
        })
    };
    page()?; // a folder without a run is an error now, not a page
    let server = Server::http(("127.0.0.1", args.port)).map_err(|e| {
        Error::new(format!("cannot listen on port {} of this machine: {e}", args.port))
            .hint("--port 0 takes any that is free")
    })?;
    let port = server.server_addr().to_ip().map_or(args.port, |at| at.port());
    errln!("http://127.0.0.1:{port} shows the run while it goes on; Ctrl-C ends this");
    for request in server.incoming_requests() {
        // A browser that has gone away is no fault of ours.
        let _ = answer(request, port, &mut page);
    }
    Ok(0)
}

/// Answers a request: there is one page, which is read.
fn answer(request: Request, port: u16, page: &mut impl FnMut() -> Result<String>) -> std::io::Result<()> {
    let plain = |text: &str, status: u16| Response::from_string(text).with_status_code(status);
    // A page of another site that names us otherwise does not get it.
    let host = request.headers().iter().find(|header| header.field.equiv("Host")).map(|header| header.value.as_str());
    let ours = ["127.0.0.1", "localhost"].map(|name| format!("{name}:{port}"));
    if !host.is_some_and(|host| ours.iter().any(|own| own == host)) {
        return request.respond(plain("this is the page of a run, for this machine alone\n", 403));
    }
    if *request.method() != Method::Get {
        return request.respond(plain("there is nothing to change here\n", 405));
    }
    if request.url() != "/" {
        return request.respond(plain("there is one page, /\n", 404));
    }
    match page() {
        Ok(html) => {
            let kind = Header::from_bytes("Content-Type", "text/html; charset=utf-8").expect("a header");
            request.respond(Response::from_string(html).with_header(kind))
        }
        Err(e) => request.respond(plain(&format!("{e}\n"), 500)),
    }
}
