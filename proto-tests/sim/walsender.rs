//! One connection to the server: startup, commands, and a physical stream (`walsender.c`), over a cable that may fail.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};

use super::chance::Chance;
use super::cluster::{Cluster, Phase, SLOT, Slot};
use super::life::Life;
use crate::support::walsender_words as words;

/// `wal_sender_timeout`, which walrecv asks for.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// WAL messages between the server and the socket.
const AHEAD: usize = 3;

/// How badly the network works: each is "once in so many messages", 0 for never.
#[derive(Clone, Copy, Default)]
pub struct NetFaults {
    /// Longest usual delay in milliseconds.
    pub delay: u64,
    /// A new connection takes so many milliseconds.
    pub dial: u64,
    pub pause: u64,
    pub cut: u64,
    /// From then on nothing arrives on either side, and nobody is told.
    pub silence: u64,
    pub flip: u64,
    pub refuse: u64,
}

/// The network between all processes and the server.
#[derive(Clone)]
pub struct Network {
    faults: Arc<Mutex<NetFaults>>,
    chance: Chance,
    cluster: Arc<Cluster>,
    count: Arc<AtomicUsize>,
}

impl Network {
    pub fn new(cluster: Arc<Cluster>, chance: Chance) -> Network {
        Network { faults: Arc::default(), chance, cluster, count: Arc::default() }
    }

    pub fn set_faults(&self, faults: NetFaults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    fn faults(&self) -> NetFaults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection of this process.
    pub async fn dial(&self, life: Life) -> io::Result<Plug> {
        let faults = self.faults();
        sleep(self.chance.millis(0, faults.delay) + Duration::from_millis(faults.dial)).await;
        if self.cluster.state().phase == Phase::Down || life.is_barred() || self.chance.one_in(faults.refuse) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let id = self.count.fetch_add(1, Ordering::Relaxed) as u64;
        tokio::spawn(Session::run(self.clone(), theirs, life.clone(), id));
        Ok(Plug { stream: ours, life })
    }
}

/// The process's end: what a dead process writes goes nowhere.
pub struct Plug {
    stream: DuplexStream,
    life: Life,
}

impl AsyncRead for Plug {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Plug {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.life.is_alive() {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What arrives: a message with its type (0: the startup packet), or the end.
type Heard = Option<(u8, Vec<u8>)>;

/// The wire between server and socket.
struct Cable {
    silent: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
    sent: Arc<Notify>,
    out: UnboundedSender<Vec<u8>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Cable {
    fn lay(network: &Network, stream: DuplexStream, life: Life) -> (Cable, UnboundedReceiver<Heard>) {
        let (read, write) = tokio::io::split(stream);
        let (out, queue) = unbounded_channel();
        let (heard, inbox) = unbounded_channel();
        let (silent, waiting, sent) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let cable = Cable {
            silent: silent.clone(),
            waiting: waiting.clone(),
            sent: sent.clone(),
            out,
            tasks: vec![
                tokio::spawn(listen(read, heard, silent.clone(), life)),
                tokio::spawn(speak(network.clone(), write, queue, silent, waiting, sent)),
            ],
        };
        (cable, inbox)
    }

    fn say(&self, bytes: Vec<u8>) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _ = self.out.send(bytes);
    }

    fn has_room(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) < AHEAD
    }

    /// Ends without what is still to be sent.
    fn cut(self) {
        // A silent cable stays as it is: nobody is told.
        if !self.silent.load(Ordering::SeqCst) {
            self.tasks.iter().for_each(JoinHandle::abort);
        }
    }

    /// Ends after what is still to be sent.
    async fn close(mut self) {
        let (nowhere, _) = unbounded_channel();
        self.out = nowhere;
        if let Some(speaking) = self.tasks.pop()
            && !self.silent.load(Ordering::SeqCst)
        {
            let _ = tokio::time::timeout(TIMEOUT, speaking).await;
        }
        self.cut();
    }
}

async fn listen(mut read: ReadHalf<DuplexStream>, heard: UnboundedSender<Heard>, silent: Arc<AtomicBool>, life: Life) {
    let mut first = true;
    loop {
        let message = receive(&mut read, first).await;
        first = false;
        if silent.load(Ordering::SeqCst) || (message.is_none() && life.fell_with_its_host()) {
            std::future::pending::<()>().await;
        }
        let ended = message.is_none();
        if heard.send(message).is_err() || ended {
            return;
        }
    }
}

async fn receive(read: &mut ReadHalf<DuplexStream>, first: bool) -> Heard {
    let tag = if first { 0 } else { read.read_u8().await.ok()? };
    let length = read.read_u32().await.ok()?;
    let mut body = vec![0; (length as usize).checked_sub(4)?];
    read.read_exact(&mut body).await.ok()?;
    Some((tag, body))
}

async fn speak(
    network: Network,
    mut write: WriteHalf<DuplexStream>,
    mut queue: UnboundedReceiver<Vec<u8>>,
    silent: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
    sent: Arc<Notify>,
) {
    while let Some(mut bytes) = queue.recv().await {
        let (faults, chance) = (network.faults(), &network.chance);
        let delay = if chance.one_in(faults.pause) { chance.millis(100, 4000) } else { chance.millis(0, faults.delay) };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if chance.one_in(faults.silence) {
            network.cluster.trace.say("the cable goes silent");
            silent.store(true, Ordering::SeqCst);
        }
        if silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if chance.one_in(faults.cut) {
            network.cluster.trace.say("the cable is cut");
            let _ = write.write_all(&bytes[..chance.below(bytes.len() as u64) as usize]).await;
            let _ = write.shutdown().await;
            break;
        }
        if bytes.len() > words::WAL_AT && bytes[0] == b'd' && bytes[5] == b'w' && chance.one_in(faults.flip) {
            let at = chance.between(words::WAL_AT as u64, bytes.len() as u64 - 1) as usize;
            network.cluster.trace.say(format!("the cable flips a bit of byte {} of a message", at - words::WAL_AT));
            bytes[at] ^= 1 << chance.below(8);
        }
        if write.write_all(&bytes).await.is_err() {
            break;
        }
        waiting.fetch_sub(1, Ordering::SeqCst);
        sent.notify_waiters();
    }
    let _ = write.shutdown().await;
}

/// Why a session ends.
enum Over {
    Cut,
    Close,
}

/// What the client said last.
struct Told {
    flushed: Lsn,
    heard: Instant,
    /// It was asked for more, since it had been quiet.
    asked: bool,
}

struct Session {
    network: Network,
    cluster: Arc<Cluster>,
    id: u64,
    epoch: u64,
    cable: Cable,
    inbox: UnboundedReceiver<Heard>,
}

impl Session {
    async fn run(network: Network, stream: DuplexStream, life: Life, id: u64) {
        let (cable, inbox) = Cable::lay(&network, stream, life);
        let cluster = network.cluster.clone();
        let epoch = cluster.change(|state| {
            state.sessions += 1;
            state.epoch
        });
        let mut session = Session { network, cluster, id, epoch, cable, inbox };
        let over = session.serve().await.err().unwrap_or(Over::Close);
        session.cluster.change(|state| {
            state.sessions -= 1;
            if let Some(slot) = state.slot.as_mut().filter(|slot| slot.active == Some(id)) {
                slot.active = None;
            }
        });
        match over {
            Over::Cut => session.cable.cut(),
            Over::Close => session.cable.close().await,
        }
    }

    fn lost(&self) -> bool {
        self.cluster.state().epoch != self.epoch
    }

    async fn serve(&mut self) -> Result<(), Over> {
        let mut changes = self.cluster.changes();
        let startup = loop {
            tokio::select! {
                heard = self.inbox.recv() => match heard.flatten() {
                    Some((_, startup)) => break startup,
                    None => return Err(Over::Cut),
                },
                _ = changes.changed() => if self.lost() || self.cluster.state().phase == Phase::Stopping {
                    return Err(Over::Cut);
                },
            }
        };
        let database = startup.windows(8).any(|w| w == b"database")
            && String::from_utf8_lossy(&startup).contains("replication\0database");
        let (phase, sql, version) = {
            let state = self.cluster.state();
            (state.phase, state.sql, state.version.number())
        };
        if phase != Phase::Up {
            self.cable.say(words::error(
                "FATAL",
                "57P03",
                "the database system is starting up",
                "ProcessStartupPacket",
            ));
            return Err(Over::Close);
        }
        if database && !sql {
            self.cable.say(words::error("FATAL", "28000", "no pg_hba.conf entry", "ClientAuthentication"));
            return Err(Over::Close);
        }
        self.cable.say(words::welcome(&format!("{version}.4")));
        loop {
            if self.lost() {
                return Err(Over::Cut);
            }
            if self.cluster.state().phase == Phase::Stopping {
                let text = "terminating connection due to administrator command";
                self.cable.say(words::error("FATAL", "57P01", text, "ProcessInterrupts"));
                return Err(Over::Close);
            }
            tokio::select! {
                heard = self.inbox.recv() => match heard.flatten() {
                    None | Some((b'X', _)) => return Err(Over::Cut),
                    Some((b'Q', body)) => self.command(&String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(&body))).await?,
                    Some(_) => {}
                },
                _ = changes.changed() => {}
            }
        }
    }

    async fn command(&mut self, text: &str) -> Result<(), Over> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let answer = match words[..] {
            ["IDENTIFY_SYSTEM"] => {
                let state = self.cluster.state();
                let branch = state.branch();
                let system = branch.wal.config().system.to_string();
                let row = [Some(system), Some(branch.timeline.0.to_string()), Some(branch.end().to_string()), None];
                words::result(&["systemid", "timeline", "xlogpos", "dbname"], Some(&row), "IDENTIFY_SYSTEM")
            }
            ["SHOW", name] => {
                let state = self.cluster.state();
                let value = match name {
                    "wal_segment_size" => &format!("{}MB", state.segment >> 20),
                    "synchronous_standby_names" if state.synchronous => "walrecv",
                    "synchronous_standby_names" => "",
                    "max_slot_wal_keep_size" => "-1",
                    "wal_level" => "replica",
                    _ => "",
                };
                words::result(&[name], Some(&[Some(value.to_owned())]), "SHOW")
            }
            ["TIMELINE_HISTORY", timeline] => {
                let timeline = TimelineId(timeline.parse().unwrap_or(0));
                match self.cluster.state().history(timeline) {
                    Some(content) => {
                        let row = [Some(timeline.history_name()), Some(content)];
                        words::result(&["filename", "content"], Some(&row), "TIMELINE_HISTORY")
                    }
                    None => words::error("ERROR", "58P01", "could not open file", "SendTimeLineHistory"),
                }
            }
            ["READ_REPLICATION_SLOT", _] => {
                let state = self.cluster.state();
                let row = match &state.slot {
                    Some(slot) => [
                        Some("physical".to_owned()),
                        slot.restart.map(|lsn| lsn.to_string()),
                        slot.restart.map(|_| state.branch().timeline.0.to_string()),
                    ],
                    None => [None, None, None],
                };
                words::result(&["slot_type", "restart_lsn", "restart_tli"], Some(&row), "READ_REPLICATION_SLOT")
            }
            ["CREATE_REPLICATION_SLOT", _, "PHYSICAL", "RESERVE_WAL"] => self.cluster.create_slot(),
            ["DROP_REPLICATION_SLOT", _] => self.cluster.drop_slot(),
            ["START_REPLICATION", ..] => return self.start(&words).await,
            _ if text.contains("pg_replication_slots") && self.cluster.state().view_refused => {
                words::error("ERROR", "42501", "permission denied for view pg_replication_slots", "aclcheck_error")
            }
            _ if text.contains("pg_replication_slots") => self.cluster.slot_view(),
            _ => words::result(&["?column?"], Some(&[None]), "SELECT 1"),
        };
        self.cable.say(answer);
        self.cable.say(words::ready());
        Ok(())
    }

    async fn start(&mut self, words: &[&str]) -> Result<(), Over> {
        let after = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1).copied());
        let slotted = after("SLOT").is_some();
        let from: Lsn = words.iter().find_map(|word| word.parse().ok()).unwrap_or_default();
        let timeline = TimelineId(after("TIMELINE").and_then(|word| word.parse().ok()).unwrap_or(1));
        let refused = self.cluster.change(|state| {
            let branch = state.branch();
            let Some(end) = branch.end_of(timeline) else {
                return Some((
                    "XX000",
                    format!("requested starting point {from} on timeline {timeline} is not in this server's history"),
                ));
            };
            if from > end {
                return Some(("XX000", format!("requested starting point {from} is ahead of {end}")));
            }
            if slotted {
                if let Some(slot) = state.slot.as_mut().filter(|_| std::mem::take(&mut state.lost_at_start)) {
                    *slot = Slot { lost: true, ..Slot::default() };
                }
                match &mut state.slot {
                    None => return Some(("42704", format!("replication slot \"{SLOT}\" does not exist"))),
                    Some(slot) if slot.active.is_some() => {
                        return Some(("55006", format!("replication slot \"{SLOT}\" is active for PID 1")));
                    }
                    Some(slot) if slot.lost && state.version >= MajorVersion::V18 => {
                        let text = format!("can no longer access replication slot \"{SLOT}\"");
                        return Some(("55000", text));
                    }
                    Some(slot) => slot.active = Some(self.id),
                }
            }
            None
        });
        let trace = self.cluster.trace.clone();
        trace.say(format!(
            "server: START_REPLICATION {from} timeline {timeline} {}",
            refused.as_ref().map_or("", |(code, _)| code)
        ));
        if let Some((code, text)) = refused {
            self.cable.say(words::error("ERROR", code, &text, "StartReplication"));
            self.cable.say(words::ready());
            return Ok(());
        }
        let over = self.stream(timeline, from, slotted).await;
        self.cluster.change(|state| {
            if let Some(slot) = state.slot.as_mut().filter(|slot| slot.active == Some(self.id)) {
                slot.active = None;
            }
        });
        over
    }

    async fn stream(&mut self, timeline: TimelineId, from: Lsn, slotted: bool) -> Result<(), Over> {
        let historic_end = |state: &super::cluster::State| {
            let branch = state.branch();
            (branch.timeline != timeline).then(|| branch.end_of(timeline)).flatten()
        };
        let ends_here = historic_end(&self.cluster.state()) == Some(from);
        if ends_here {
            self.next_timeline(timeline);
            return Ok(());
        }
        self.cable.say(words::copy_both());
        let (mut sent, mut ended) = (from, false);
        let mut told = Told { flushed: Lsn(0), heard: Instant::now(), asked: false };
        let mut pinged: Option<Instant> = None;
        let mut changes = self.cluster.changes();
        loop {
            if self.lost() {
                return Err(Over::Cut);
            }
            let (end, historic, stopping, removed) = self.standing(historic_end, slotted)?;
            let segment = self.cluster.state().segment;
            if sent < end && !ended && sent.align_down(segment) < removed {
                self.cluster.change(|state| state.trail.refused.insert((timeline, sent)));
                let text = format!("requested WAL segment at {sent} has already been removed");
                self.cable.say(words::error("ERROR", "58P01", &text, "XLogReadRaiseError"));
                self.cable.say(words::ready());
                return Ok(());
            }
            if sent < end && !ended && self.cable.has_room() {
                let most = self.network.chance.pick(&[128 << 10, 128 << 10, 40_000, 8192, 777]);
                let to = Lsn((sent.0 + most).min(end.0));
                let bytes = self.cluster.state().branch().served(sent, to);
                self.cable.say(words::wal(sent, end, &bytes));
                sent = to;
                continue;
            }
            if historic && sent >= end && !ended {
                self.cable.say(words::copy_done());
                ended = true;
            }
            if stopping && sent >= end && !historic {
                if told.flushed >= sent {
                    self.cable.say(words::complete("COPY 0"));
                    return Err(Over::Close);
                }
                if pinged.is_none_or(|at| at.elapsed() >= Duration::from_millis(500)) && self.cable.has_room() {
                    pinged = Some(Instant::now());
                    self.cable.say(words::keepalive(sent, true));
                }
            }
            self.mind_the_time(sent, &mut told)?;
            let sent_one = self.cable.sent.clone();
            let wake = told.heard + if told.asked { TIMEOUT } else { TIMEOUT / 2 };
            let wake = if stopping { wake.min(Instant::now() + Duration::from_millis(500)) } else { wake };
            tokio::select! {
                message = self.inbox.recv() => {
                    if self.hear(message.flatten(), timeline, (sent, ended), &mut told)? {
                        return Ok(());
                    }
                }
                _ = changes.changed() => {}
                _ = sent_one.notified() => {}
                _ = sleep_until(wake) => {}
            }
        }
    }

    /// The end of what can be sent, whether the server left the timeline there, whether it stops, and what it has removed. Whoever has lost his slot is ended.
    fn standing(
        &self,
        historic_end: impl Fn(&super::cluster::State) -> Option<Lsn>,
        slotted: bool,
    ) -> Result<(Lsn, bool, bool, Lsn), Over> {
        let state = self.cluster.state();
        let held = state.slot.as_ref().is_some_and(|slot| slot.active == Some(self.id));
        if slotted && !held {
            let text = "terminating connection due to administrator command";
            self.cable.say(words::error("FATAL", "57P01", text, "ProcessInterrupts"));
            return Err(Over::Close);
        }
        let historic = historic_end(&state);
        Ok((historic.unwrap_or(state.end()), historic.is_some(), state.phase == Phase::Stopping, state.removed))
    }

    /// A client that says nothing is asked, and then left (`WalSndCheckTimeOut`).
    fn mind_the_time(&self, sent: Lsn, told: &mut Told) -> Result<(), Over> {
        if told.heard.elapsed() >= TIMEOUT {
            self.cluster.trace.say("server: wal_sender_timeout");
            return Err(Over::Cut);
        }
        if told.heard.elapsed() >= TIMEOUT / 2 && !told.asked {
            told.asked = true;
            self.cable.say(words::keepalive(sent, true));
        }
        Ok(())
    }

    /// A message of the client; `true`: the stream is over, and commands follow.
    fn hear(
        &mut self,
        message: Heard,
        timeline: TimelineId,
        (sent, ended): (Lsn, bool),
        told: &mut Told,
    ) -> Result<bool, Over> {
        match message {
            None | Some((b'X', _)) => return Err(Over::Cut),
            Some((b'd', body)) if body.first() == Some(&b'r') && body.len() == 34 => {
                let word = |at: usize| Lsn(u64::from_be_bytes(body[at..at + 8].try_into().expect("eight bytes")));
                *told = Told { flushed: word(9), heard: Instant::now(), asked: false };
                self.cluster.told(timeline, word(1), told.flushed);
                if body[33] == 1 {
                    self.cable.say(words::keepalive(sent, false));
                }
            }
            Some((b'c', _)) if ended => {
                self.next_timeline(timeline);
                return Ok(true);
            }
            Some((b'c', _)) => {
                self.cable.say(words::copy_done());
                self.cable.say(words::complete("COPY 0"));
                self.cable.say(words::complete("START_REPLICATION"));
                self.cable.say(words::ready());
                return Ok(true);
            }
            Some(_) => {}
        }
        Ok(false)
    }

    /// The result set at the end of a timeline that this server left.
    fn next_timeline(&self, timeline: TimelineId) {
        let state = self.cluster.state();
        let branch = state.branch();
        let end = branch.end_of(timeline).unwrap_or_default();
        let after = branch.ancestors.iter().skip_while(|(t, _)| *t != timeline).nth(1);
        let next = after.map_or(branch.timeline, |(t, _)| *t);
        let row = [Some(next.0.to_string()), Some(end.to_string())];
        self.cable.say(words::result(&["next_tli", "next_tli_startpos"], Some(&row), "SELECT"));
        self.cable.say(words::complete("START_REPLICATION"));
        self.cable.say(words::ready());
    }
}
