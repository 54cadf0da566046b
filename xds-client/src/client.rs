//! The handles by which a consumer speaks to its control plane, and what they share with the task behind them: a gRPC
//! stream (`grpc`), a polled REST service (`rest`) or a watched file (`file`). What is said and when is decided in `state`.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::sync::{Notify, mpsc};
use tonic::Code;

use crate::connect::Connect;
use crate::event::{Answer, Event, Response};
use crate::file::{self, FileOptions};
use crate::grpc;
use crate::options::Options;
use crate::rest::{self, RestOptions};
use crate::state::Machine;
use crate::stats::Stats;
use crate::types::{Method, Mode, SubscribeError, Subscription, TypeUrl};
use crate::wire::Incoming;

/// Handle to a client: says what is wanted. Cheap to clone; when the last clone is dropped, the stream is closed.
///
/// None of its methods wait. What is called between two requests goes out as one, and always as a message of its own,
/// in the order in which the calls were made: a subscription made before a response is acknowledged is sent before the
/// acknowledgement.
///
/// ```no_run
/// use std::sync::Arc;
/// use xds_client::{Client, Event, Options, Subscription, TcpConnector, TypeUrl};
///
/// # async fn run() {
/// let options = Options::default();
/// let (client, mut events) = Client::start(options, Arc::new(TcpConnector::new("127.0.0.1:18000")));
/// client.subscribe(&TypeUrl::CLUSTER, Subscription::Wildcard);
/// while let Some(event) = events.next().await {
///     match event {
///         Event::Connected => println!("connected"),
///         Event::Disconnected { error, retry_in, .. } => println!("{error}; again in {retry_in:?}"),
///         Event::Response(response) => {
///             let names = response.resources.iter().map(|r| r.name.clone());
///             client.subscribe(&TypeUrl::ENDPOINT, Subscription::names(names));
///             response.ack();
///         }
///     }
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Handle>,
}

/// Events of a client, in order. If it is dropped, the stream is closed.
///
/// A consumer that does not take events stops the stream from being read: at most
/// [`Options::event_queue`] events wait, and what the HTTP/2 windows let the server send.
pub struct Events {
    queue: mpsc::Receiver<Event>,
}

/// Ends the task when the last `Client` goes; responses in the consumer's hands keep only `Shared`.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closed.notify_one();
    }
}

/// What the handles, the task and the answers in the consumer's hands have in common.
pub(crate) struct Shared {
    machine: Mutex<Machine>,
    /// Wakes the request stream.
    pub work: AtomicWaker,
    /// Wakes the reader, when requests had piled up.
    pub drained: Notify,
    /// Wakes a source that is asked rather than told: more is wanted than at its last answer.
    pub wanted: Notify,
    /// Wakes a source that is asked rather than told, when it had nothing to ask for: a type is no longer held back.
    pub resumed: Notify,
    /// Wakes who waits for the next resource to expire: it is another one, or at another time.
    deadlines: Notify,
    closed: Notify,
    pub stats: Arc<dyn Stats>,
}

impl Shared {
    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        // The machine has no state in which a panic could leave it that would be worse than going on.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn close(&self) {
        self.machine().close();
        // The request stream, if it still lives, ends.
        self.work.wake();
    }

    /// Something is done that may change when the next resource expires.
    fn timed<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.machine();
        let before = machine.next_expiry();
        let done = act(&mut machine);
        if machine.next_expiry() != before {
            self.deadlines.notify_one();
        }
        done
    }

    /// Makes the consumer's event of what arrived; `None` if it is refused here.
    pub fn received(self: &Arc<Self>, mut incoming: Incoming) -> Option<Event> {
        self.stats.response_received(&incoming.type_url, incoming.bytes);
        let Some(outstanding) = self.timed(|machine| machine.received(&mut incoming)) else {
            self.stats.response_unwanted(&incoming.type_url, incoming.bytes);
            self.work.wake();
            return None;
        };
        let shared = self.clone();
        let answer = Answer::new(move |verdict| {
            shared.timed(|machine| machine.answer(outstanding, verdict, Instant::now()));
            shared.work.wake();
        });
        Some(event(incoming, false, answer))
    }

    /// Tells the consumer what has expired, for as long as somebody listens.
    async fn expire(&self, events: &mpsc::Sender<Event>) {
        loop {
            let next = self.machine().next_expiry();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.deadlines.notified() => continue,
            }
            // Taken out when there is room for the event and not before: what renews it may arrive meanwhile.
            let Ok(room) = events.reserve().await else { return };
            let expired = self.machine().expire(Instant::now());
            if let Some(expired) = expired {
                self.stats.expired(&expired.type_url, expired.removed.len());
                room.send(event(expired, true, Answer::none()));
            }
        }
    }
}

fn event(incoming: Incoming, expired: bool, answer: Answer) -> Event {
    let Incoming { type_url, version, nonce, kind, resources, removed, errors, control_plane, bytes, received } =
        incoming;
    Event::Response(Response {
        type_url,
        version,
        nonce,
        kind,
        resources,
        removed,
        expired,
        errors,
        control_plane,
        bytes,
        received,
        answer,
    })
}

/// Where events go, for sources that alternate between good and bad: `Connected` and `Disconnected` take turns.
pub(crate) struct Reporter {
    pub events: mpsc::Sender<Event>,
    stats: Arc<dyn Stats>,
    connected: bool,
}

/// Nobody listens any more.
pub(crate) struct Gone;

impl Reporter {
    pub fn new(events: mpsc::Sender<Event>, stats: Arc<dyn Stats>) -> Self {
        Reporter { events, stats, connected: false }
    }

    /// The source answered.
    pub async fn good(&mut self) -> Result<(), Gone> {
        if std::mem::replace(&mut self.connected, true) {
            return Ok(());
        }
        self.stats.connected();
        self.events.send(Event::Connected).await.map_err(|_| Gone)
    }

    /// The source could not be asked, or what it gave cannot be used. What was received before stays valid.
    pub async fn bad(&mut self, error: String, code: Option<Code>, retry_in: Duration) -> Result<(), Gone> {
        self.connected = false;
        self.stats.disconnected();
        self.events.send(Event::Disconnected { error, code, retry_in }).await.map_err(|_| Gone)
    }
}

impl Client {
    /// Starts a client on the current tokio runtime. It connects at once and never gives up.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(options: Options, connector: Arc<dyn Connect>) -> (Client, Events) {
        let only = match &options.method {
            Method::Aggregated => None,
            Method::Type(type_url) => Some(type_url.clone()),
        };
        let machine = Machine::new(options.mode, only, options.set_node_on_first_message_only);
        let stats = options.stats.clone();
        Client::spawn(machine, stats, options.event_queue, move |shared, events| {
            grpc::run(options, connector, shared, events)
        })
    }

    /// Starts a client that reads its resources from a file, and again whenever the file is replaced. See
    /// [`FileOptions`].
    ///
    /// It speaks as a state-of-the-world server of one type would: nothing is handed over before something is
    /// subscribed; then comes everything that the file holds, whatever the names, as [`Kind::Full`](crate::Kind), and
    /// again when more is subscribed. A file that cannot be used is told as [`Event::Disconnected`], with
    /// `Duration::MAX` as the time of the next attempt: that is when the file is replaced. Acknowledgements lead nowhere.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn watch_file(options: FileOptions) -> (Client, Events) {
        let machine = Machine::new(Mode::Sotw, Some(options.type_url.clone()), true);
        let stats = options.stats.clone();
        Client::spawn(machine, stats, options.event_queue, move |shared, events| file::run(options, shared, events))
    }

    /// Starts a client that polls a REST service for one type. See [`RestOptions`].
    ///
    /// Polls begin when something is subscribed, and one is made at once whenever more is. Each asks with the version that
    /// was acknowledged last; refusals are not told, as the service has no words for them. A poll that fails is told as
    /// [`Event::Disconnected`], the first one after that is good as [`Event::Connected`]. A response whose version the
    /// consumer has already is handed over nevertheless, unless the server answers 304.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn poll(options: RestOptions, connector: Arc<dyn Connect>) -> (Client, Events) {
        let machine = Machine::new(Mode::Sotw, Some(options.type_url.clone()), true);
        let stats = options.stats.clone();
        Client::spawn(machine, stats, options.event_queue, move |shared, events| {
            rest::run(options, connector, shared, events)
        })
    }

    fn spawn<F>(
        machine: Machine,
        stats: Arc<dyn Stats>,
        event_queue: usize,
        task: impl FnOnce(Arc<Shared>, mpsc::Sender<Event>) -> F,
    ) -> (Client, Events)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            machine: Mutex::new(machine),
            work: AtomicWaker::new(),
            drained: Notify::new(),
            wanted: Notify::new(),
            resumed: Notify::new(),
            deadlines: Notify::new(),
            closed: Notify::new(),
            stats,
        });
        // One place more than events may wait: whoever reads the source keeps one for what it reads next, and what expires
        // meanwhile must not wait for that.
        let (events, queue) =
            mpsc::channel(event_queue.max(1).saturating_add(1).min(tokio::sync::Semaphore::MAX_PERMITS));
        let task = task(shared.clone(), events.clone());
        let ended = shared.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.closed.notified() => {}
                () = events.closed() => {}
                () = ended.expire(&events) => {}
                () = task => {}
            }
            ended.close();
        });
        (Client { inner: Arc::new(Handle { shared }) }, Events { queue })
    }

    /// As [`Client::try_subscribe`], with what cannot be subscribed told to the log.
    pub fn subscribe(&self, type_url: &TypeUrl, names: Subscription) {
        if let Err(error) = self.try_subscribe(type_url, names) {
            tracing::error!("{error}");
        }
    }

    /// Adds to what is wanted of a type. Names that are subscribed already change nothing; a name that is taken back and
    /// subscribed again is sent anew by the server.
    ///
    /// # Errors
    /// Nothing is subscribed: on a stream of one type, another type was given; or a name that is not supported.
    pub fn try_subscribe(&self, type_url: &TypeUrl, names: Subscription) -> Result<(), SubscribeError> {
        let shared = &self.inner.shared;
        let more = shared.machine().subscribe(type_url, names)?;
        shared.work.wake();
        if more {
            shared.wanted.notify_one();
        }
        Ok(())
    }

    /// Takes names back; `*` takes back the wildcard. Resources of these names that are under way still arrive.
    /// In state of the world, a name that is taken back and wanted again while a response is under way may come only with the
    /// next response or stream: the server passes over requests whose nonce is stale by then. And a wildcard cannot be
    /// taken back on a stream that never named a name: the protocol has no words for it. The stream goes on bringing everything; subscribed again, it is sent anew all the same.
    pub fn unsubscribe<S: AsRef<str>>(&self, type_url: &TypeUrl, names: &[S]) {
        self.inner.shared.timed(|machine| machine.unsubscribe(type_url, names));
        self.inner.shared.work.wake();
    }

    /// Holds back everything that would be said of a type on a stream, answers too, as long as the guard lives. Changes of
    /// the subscription made meanwhile go out as one. Responses still arrive.
    ///
    /// ```no_run
    /// # fn run(client: xds_client::Client, clusters: Vec<String>) {
    /// use xds_client::{Subscription, TypeUrl};
    /// let paused = client.pause(&TypeUrl::ENDPOINT);
    /// for cluster in clusters {
    ///     client.subscribe(&TypeUrl::ENDPOINT, Subscription::names([cluster]));
    /// }
    /// drop(paused);
    /// # }
    /// ```
    #[must_use = "what is dropped at once holds back nothing"]
    pub fn pause(&self, type_url: &TypeUrl) -> Paused {
        self.inner.shared.machine().pause(type_url);
        Paused { shared: self.inner.shared.clone(), type_url: type_url.clone() }
    }
}

/// Holds back the requests of a type until it is dropped; see [`Client::pause`].
pub struct Paused {
    shared: Arc<Shared>,
    type_url: TypeUrl,
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.shared.machine().resume(&self.type_url);
        self.shared.work.wake();
        self.shared.resumed.notify_one();
    }
}

impl Events {
    /// The next event; `None` when the last [`Client`] is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.queue.poll_recv(cx)
    }
}
