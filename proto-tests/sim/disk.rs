//! A disk in memory that keeps apart what the operating system shows and what would be there after the power failed.
//!
//! Files are written page by page, and a page that was not synced may be lost, kept or torn at a sector. Names are part of their directory and are lost with
//! it unless the directory was synced. A failed sync of a file drops its pages for good, as Linux does; a failed sync of a directory leaves the file system
//! read-only until the next start of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use walrecv::disk::lane::Lane;
use walrecv::disk::medium::{Form, Handle, Medium, Seen};

use super::chance::Chance;
use super::life::Life;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const EIO: i32 = 5;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const ENOTEMPTY: i32 = 39;

/// How badly it works: each is "once in so many calls", 0 for never.
#[derive(Clone, Copy, Default)]
pub struct DiskFaults {
    pub write_error: u64,
    pub short_write: u64,
    pub sync_error: u64,
    pub dir_sync_error: u64,
    pub read_error: u64,
    /// No room for anything new.
    pub full: bool,
    /// A deliberate lie, to see that it is found out: syncs do nothing.
    pub ignores_sync: bool,
    /// The same, for directories only.
    pub ignores_dir_sync: bool,
}

/// What a power failure leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing of it.
    All,
    /// Of names, the removals only.
    AllButRemovals,
    /// Any part of it.
    Some,
    /// No power failure: everything that the operating system shows.
    Nothing,
}

#[derive(Clone, Default)]
struct FileNode {
    shown: Arc<Vec<u8>>,
    platter: Arc<Vec<u8>>,
    dirty: BTreeSet<usize>,
    locked: Option<u64>,
}

#[derive(Clone, Default)]
struct DirNode {
    shown: BTreeMap<String, usize>,
    platter: BTreeMap<String, usize>,
}

#[derive(Clone)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Clone)]
struct State {
    nodes: Vec<Node>,
    faults: DiskFaults,
    read_only: bool,
    chance: Chance,
}

/// The disk of a host.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// With one directory, durably there.
    pub fn new(root: &str, chance: Chance) -> SimDisk {
        let mut top = DirNode::default();
        top.shown.insert(root.trim_start_matches('/').to_owned(), 1);
        top.platter = top.shown.clone();
        let nodes = vec![Node::Dir(top), Node::Dir(DirNode::default())];
        SimDisk(Arc::new(Mutex::new(State { nodes, faults: DiskFaults::default(), read_only: false, chance })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_faults(&self, faults: DiskFaults) {
        let lies = self.state().faults;
        let faults = DiskFaults { ignores_sync: lies.ignores_sync, ignores_dir_sync: lies.ignores_dir_sync, ..faults };
        self.state().faults = faults;
    }

    pub fn lie(&self, sync: bool, dir_sync: bool) {
        let mut state = self.state();
        (state.faults.ignores_sync, state.faults.ignores_dir_sync) = (sync, dir_sync);
    }

    pub fn is_read_only(&self) -> bool {
        self.state().read_only
    }

    /// The power fails, and the host starts again.
    pub fn lose_power(&self, loss: Loss) {
        self.state().crash(loss);
    }

    /// Another disk with what would be left of this one, which goes on.
    pub fn survivor(&self, loss: Loss, chance: Chance) -> SimDisk {
        let mut state = State { chance, ..self.state().clone() };
        state.crash(loss);
        state.faults = DiskFaults::default();
        SimDisk(Arc::new(Mutex::new(state)))
    }
}

impl State {
    fn crash(&mut self, loss: Loss) {
        self.read_only = false;
        if loss == Loss::Nothing {
            return;
        }
        let chance = self.chance.clone();
        for node in &mut self.nodes {
            match node {
                Node::File(file) => file.crash(loss, &chance),
                Node::Dir(dir) => dir.crash(loss, &chance),
            }
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let Node::Dir(dir) = &self.nodes[at] else { return Err(errno(ENOTDIR)) };
            at = *dir.shown.get(&*name.to_string_lossy()).ok_or_else(|| errno(ENOENT))?;
        }
        Ok(at)
    }

    fn dir_of<'a>(&mut self, path: &'a Path) -> io::Result<(&mut DirNode, &'a str)> {
        let above = self.find(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| errno(ENOENT))?;
        match &mut self.nodes[above] {
            Node::Dir(dir) => Ok((dir, name)),
            Node::File(_) => Err(errno(ENOTDIR)),
        }
    }

    fn may_change(&self, grows: bool) -> io::Result<()> {
        match (self.read_only, grows && self.faults.full) {
            (true, _) => Err(errno(EROFS)),
            (_, true) => Err(errno(ENOSPC)),
            _ if self.chance.one_in(self.faults.write_error) => Err(errno(EIO)),
            _ => Ok(()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        self.may_change(true)?;
        let next = self.nodes.len();
        let (dir, name) = self.dir_of(path)?;
        if dir.shown.contains_key(name) {
            return Err(errno(EEXIST));
        }
        dir.shown.insert(name.to_owned(), next);
        self.nodes.push(node);
        Ok(next)
    }

    fn seen(&self, at: usize) -> Seen {
        let (form, len) = match &self.nodes[at] {
            Node::File(file) => (Form::File, file.shown.len() as u64),
            Node::Dir(_) => (Form::Directory, 0),
        };
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        // No inode is ever used again.
        Seen { form, len, modified, device: 1, inode: at as u64, made: Some(SystemTime::UNIX_EPOCH) }
    }

    fn sync(&mut self, at: usize) -> io::Result<()> {
        let faults = self.faults;
        if self.read_only {
            return Err(errno(EROFS));
        }
        match &mut self.nodes[at] {
            Node::File(_) if faults.ignores_sync => Ok(()),
            Node::Dir(_) if faults.ignores_sync || faults.ignores_dir_sync => Ok(()),
            Node::File(file) if self.chance.one_in(faults.sync_error) => {
                file.dirty.clear();
                Err(errno(EIO))
            }
            Node::File(file) => {
                file.sync();
                Ok(())
            }
            Node::Dir(_) if self.chance.one_in(faults.dir_sync_error) => {
                self.read_only = true;
                Err(errno(EIO))
            }
            Node::Dir(dir) => {
                dir.platter = dir.shown.clone();
                Ok(())
            }
        }
    }
}

impl FileNode {
    fn write(&mut self, bytes: &[u8], at: usize) {
        let shown = Arc::make_mut(&mut self.shown);
        let end = at + bytes.len();
        let before = shown.len();
        if end > before {
            shown.resize(end, 0);
        }
        shown[at..end].copy_from_slice(bytes);
        self.dirty.extend(at.min(before) / PAGE..end.div_ceil(PAGE));
    }

    fn sync(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        self.settle(dirty, |_| true);
    }

    /// Writes these pages to the platter, as far as `lucky` lets each sector through.
    fn settle(&mut self, pages: BTreeSet<usize>, mut lucky: impl FnMut(usize) -> bool) {
        let platter = Arc::make_mut(&mut self.platter);
        for page in pages {
            let end = ((page + 1) * PAGE).min(self.shown.len());
            for sector in (page * PAGE..end).step_by(SECTOR) {
                let to = (sector + SECTOR).min(end);
                if lucky(page) {
                    if platter.len() < to {
                        platter.resize(to, 0);
                    }
                    platter[sector..to].copy_from_slice(&self.shown[sector..to]);
                }
            }
        }
    }

    fn crash(&mut self, loss: Loss, chance: &Chance) {
        self.locked = None;
        let dirty = std::mem::take(&mut self.dirty);
        if loss == Loss::Some && !dirty.is_empty() {
            // Per page: all, nothing, or sector by sector.
            let fates: BTreeMap<usize, u64> = dirty.iter().map(|page| (*page, chance.below(4))).collect();
            self.settle(dirty, |page| match fates[&page] {
                0 | 1 => true,
                2 => chance.one_in(2),
                _ => false,
            });
        }
        self.shown = self.platter.clone();
    }
}

impl DirNode {
    fn crash(&mut self, loss: Loss, chance: &Chance) {
        let names: BTreeSet<String> = self.shown.keys().chain(self.platter.keys()).cloned().collect();
        for name in names {
            let (shown, platter) = (self.shown.get(&name).copied(), self.platter.get(&name).copied());
            let kept = match loss {
                Loss::AllButRemovals => shown.is_none(),
                Loss::Some => chance.one_in(2),
                _ => false,
            };
            match shown {
                _ if !kept || shown == platter => {}
                Some(node) => _ = self.platter.insert(name, node),
                None => _ = self.platter.remove(&name),
            }
        }
        self.shown = self.platter.clone();
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The disk as one process sees it.
#[derive(Clone)]
pub struct Mount {
    pub disk: SimDisk,
    pub life: Life,
    pub lane: Lane,
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mount")
    }
}

impl Mount {
    fn change(&self) -> io::Result<MutexGuard<'_, State>> {
        if self.life.step() { Ok(self.disk.state()) } else { Err(errno(EIO)) }
    }

    fn look_in(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if self.life.is_alive() && !state.chance.one_in(state.faults.read_error) { Ok(state) } else { Err(errno(EIO)) }
    }

    fn handle(&self, node: usize) -> SimHandle {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        SimHandle { mount: self.clone(), node, id: COUNT.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Medium for Mount {
    fn lane(&self) -> Lane {
        self.lane.clone()
    }

    fn create(&self, path: &Path, _mode: u32) -> io::Result<Box<dyn Handle>> {
        let mut state = self.change()?;
        let node = state.add(path, Node::File(FileNode::default()))?;
        drop(state);
        let handle = self.handle(node);
        handle.try_lock()?;
        Ok(Box::new(handle))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        let node = self.look_in()?.find(path)?;
        Ok(Box::new(self.handle(node)))
    }

    fn reopen(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        self.open(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        state.may_change(true)?;
        let node = state.find(from)?;
        let (dir, name) = state.dir_of(to)?;
        if dir.shown.contains_key(name) {
            return Err(errno(EEXIST));
        }
        dir.shown.insert(name.to_owned(), node);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        state.may_change(false)?;
        let node = state.find(from)?;
        let (dir, name) = state.dir_of(from)?;
        dir.shown.remove(name);
        let (dir, name) = state.dir_of(to)?;
        dir.shown.insert(name.to_owned(), node);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        state.may_change(false)?;
        let node = state.find(path)?;
        if matches!(state.nodes[node], Node::Dir(_)) {
            return Err(errno(EISDIR));
        }
        let (dir, name) = state.dir_of(path)?;
        dir.shown.remove(name);
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?.add(path, Node::Dir(DirNode::default())).map(|_| ())
    }

    fn private_folder(&self, path: &Path) -> walrecv::error::Result<()> {
        let above: Vec<_> = path.ancestors().filter(|above| above.parent().is_some()).collect();
        for folder in above.into_iter().rev() {
            match self.create_dir(folder) {
                Err(error) if error.raw_os_error() != Some(EEXIST) => {
                    return Err(walrecv::disk::durable::failed("cannot make", folder, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        state.may_change(false)?;
        let node = state.find(path)?;
        match &state.nodes[node] {
            Node::Dir(dir) if dir.shown.is_empty() => {}
            Node::Dir(_) => return Err(errno(ENOTEMPTY)),
            Node::File(_) => return Err(errno(ENOTDIR)),
        }
        let (dir, name) = state.dir_of(path)?;
        dir.shown.remove(name);
        Ok(())
    }

    fn look(&self, path: &Path) -> io::Result<Seen> {
        let state = self.look_in()?;
        state.find(path).map(|node| state.seen(node))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, Form)>> {
        let state = self.look_in()?;
        let node = state.find(path)?;
        let Node::Dir(dir) = &state.nodes[node] else { return Err(errno(ENOTDIR)) };
        Ok(dir.shown.iter().map(|(name, node)| (OsString::from(name), state.seen(*node).form)).collect())
    }
}

struct SimHandle {
    mount: Mount,
    node: usize,
    id: u64,
}

impl fmt::Debug for SimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimHandle({})", self.node)
    }
}

impl Handle for SimHandle {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.mount.change()?;
        let (short, chance) = (state.faults.short_write, state.chance.clone());
        let part = if chance.one_in(short) { &bytes[..chance.below(bytes.len() as u64) as usize] } else { bytes };
        let part = if part.is_empty() { &bytes[..bytes.len().min(1)] } else { part };
        let grows = matches!(&state.nodes[self.node], Node::File(f) if (f.shown.len() as u64) < at + part.len() as u64);
        state.may_change(grows)?;
        match &mut state.nodes[self.node] {
            Node::File(file) => file.write(part, at as usize),
            Node::Dir(_) => return Err(errno(EISDIR)),
        }
        Ok(part.len())
    }

    fn read_at(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let state = self.mount.look_in()?;
        let Node::File(file) = &state.nodes[self.node] else { return Err(errno(EISDIR)) };
        let from = (at as usize).min(file.shown.len());
        let to = file.shown.len().min(from.saturating_add(len.min(1 << 40) as usize));
        Ok(file.shown[from..to].to_vec())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.mount.change()?.sync(self.node)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.mount.change()?.sync(self.node)
    }

    fn look(&self) -> io::Result<Seen> {
        Ok(self.mount.look_in()?.seen(self.node))
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.mount.disk.state();
        let Node::File(file) = &mut state.nodes[self.node] else { return Err(errno(EISDIR)) };
        let free = file.locked.is_none_or(|holder| holder == self.id);
        if free {
            file.locked = Some(self.id);
        }
        Ok(free)
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        let mut state = self.mount.disk.state();
        if let Node::File(file) = &mut state.nodes[self.node]
            && file.locked == Some(self.id)
        {
            file.locked = None;
        }
    }
}
