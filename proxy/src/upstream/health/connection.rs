//! HTTP connections of health checks, kept from one check to the next. Each has its own task, which ends with it.

use super::Kept;
use super::target::Target;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use tokio::task::AbortHandle;

/// Bound of a response's header section.
const MAX_HEADERS: u32 = 64 * 1024;

pub(super) struct HttpConnection {
    sender: Sender,
    _tasks: Tasks,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// The tasks of a connection, ended when this is dropped: a peer that neither reads nor closes would keep them for ever.
#[derive(Clone, Default)]
struct Tasks(Rc<RunningTasks>);

#[derive(Default)]
struct RunningTasks(RefCell<Vec<AbortHandle>>);

impl Drop for RunningTasks {
    fn drop(&mut self) {
        self.0.get_mut().iter().for_each(AbortHandle::abort);
    }
}

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut running = self.0.0.borrow_mut();
        running.retain(|task| !task.is_finished());
        running.push(tokio::task::spawn_local(task).abort_handle());
    }
}

/// Where hyper runs the tasks of an HTTP/2 connection. Does not keep them alive itself.
#[derive(Clone)]
struct WeakTasks(Weak<RunningTasks>);

impl<F> hyper::rt::Executor<F> for WeakTasks
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, task: F) {
        if let Some(tasks) = self.0.upgrade() {
            Tasks(tasks).spawn(task);
        }
    }
}

impl HttpConnection {
    /// A kept connection, if it can still be used.
    pub async fn take(kept: Option<Kept>) -> Option<HttpConnection> {
        let Some(Kept::Http(mut connection)) = kept else { return None };
        let ready = match &mut connection.sender {
            Sender::Http1(sender) => sender.ready().await,
            Sender::Http2(sender) => sender.ready().await,
        };
        ready.is_ok().then_some(connection)
    }

    /// # Errors
    /// A text that says why there is no connection.
    pub async fn open(target: &Target, is_http2: bool) -> Result<HttpConnection, String> {
        let io = TokioIo::new(target.connect().await?);
        let tasks = Tasks::default();
        let fail = |e: hyper::Error| e.to_string();
        let sender = if is_http2 {
            let mut builder = http2::Builder::new(WeakTasks(Rc::downgrade(&tasks.0)));
            builder.timer(TokioTimer::new()).max_header_list_size(MAX_HEADERS);
            let (sender, connection) = builder.handshake(io).await.map_err(fail)?;
            tasks.spawn(async move { drop(connection.await) });
            Sender::Http2(sender)
        } else {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(MAX_HEADERS as usize);
            let (sender, connection) = builder.handshake(io).await.map_err(fail)?;
            tasks.spawn(async move { drop(connection.await) });
            Sender::Http1(sender)
        };
        Ok(HttpConnection { sender, _tasks: tasks })
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => sender.send_request(request).await,
        }
    }
}
