//! Opening the log: what is on the disk is read, checked, and made sure of (docs/log-format.md §5).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    sync::Arc,
};

use super::{
    LogError, Options,
    active::{Active, Beginning, Free, NEVER, Supply},
    index::Index,
    record::{Kind, Record},
    segment::{Image, Scan, free_generation_of, free_name, generation_of, name},
    sidecar,
    writer::put_away,
};
use crate::{env::Disk, limits::LOG_FLUSH_BYTES_MAX};

/// The generation of a log's first segment.
const FIRST: u64 = 1;

/// A log that was opened.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) active: Active,
    /// What the active segment holds.
    pub(super) sidecar: sidecar::Builder,
    pub(super) free: Free,
    pub(super) released: u64,
}

/// The last segment, and the end of the one before if that is still there.
struct Tail {
    image: Image,
    scan: Scan,
    released: u64,
}

/// Opens or creates the log.
///
/// # Errors
/// `Damaged`, `Version`, or `Disk`.
pub(super) fn recover(disk: &dyn Disk, options: &Options) -> Result<Recovered, LogError> {
    let dir = &*options.dir;
    let failed = |e| LogError::Disk(format!("{}: {e}", dir.display()));
    disk.create_dir(dir).map_err(|e| LogError::of(&dir.display().to_string(), &e))?;
    let names = disk.list(dir).map_err(failed)?;
    let mut segments: BTreeSet<u64> = names.iter().filter_map(|n| generation_of(n)).collect();
    let mut free = free_files(disk, dir, &names)?;

    let Some(tail) = find_tail(disk, dir, &mut segments)? else {
        return match free.front() {
            None => create(disk, options),
            Some((path, _)) => Err(damaged(path, "a segment was in use here, but none is left")),
        };
    };
    let last = tail.image.generation;
    let ends = check_sequence(disk, dir, &segments, &tail)?;
    let mut index = Index::default();
    for (&generation, &end) in &ends {
        let (image, scan) = match sidecar::closed(disk, dir, generation, end) {
            Some(known) => known,
            None => read_closed(disk, dir, generation, end)?,
        };
        // Only a process that ended right after a head was written has not sealed the segment before it.
        if !scan.sealed && (generation + 1 < last || tail.scan.flushes > 1) {
            return Err(image.damaged(scan.end, "the segment's seal is damaged"));
        }
        replay(&mut index, &image, &scan)?;
    }
    replay(&mut index, &tail.image, &tail.scan)?;
    index.settle()?;

    let active = secure(disk, dir, &tail, ends.get(&(last.wrapping_sub(1))).copied())?;
    for &generation in segments.range(..tail.released) {
        let len = disk.open(&dir.join(name(generation))).and_then(|f| f.len()).map_err(failed)?;
        free.extend(put_away(disk, dir, generation, len)?);
    }
    // After those whose new name was lost in a power cut, and what they had been shortened by was not.
    remove_short(disk, &mut free, options.segment_bytes);
    remove_sidecars(disk, dir, &names, tail.released..last);
    let sidecar = sidecar::Builder::of(&tail.scan);
    Ok(Recovered { index, active, sidecar, free, released: tail.released })
}

/// Reads a closed segment whole, and writes the file that spares the next opening that.
fn read_closed(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
    end: u64,
) -> Result<(Image, Scan), LogError> {
    let mut image = Image::load(disk, dir, generation)?;
    let scan = image.scan_closed(end)?;
    image.bytes = Vec::new();
    if scan.sealed {
        sidecar::remove(disk, dir, generation);
        sidecar::Builder::of(&scan).write(disk, dir, end);
    }
    Ok((image, scan))
}

/// Removes what stands beside segments that are no longer there.
fn remove_sidecars(disk: &dyn Disk, dir: &Path, names: &[String], kept: Range<u64>) {
    let all = names.iter().filter_map(|name| sidecar::generation_of(name));
    all.filter(|generation| !kept.contains(generation))
        .for_each(|generation| sidecar::remove(disk, dir, generation));
}

/// Begins the first segment of a new log.
fn create(disk: &dyn Disk, options: &Options) -> Result<Recovered, LogError> {
    let beginning = Beginning {
        generation: FIRST,
        released: FIRST,
        previous_end: 0,
        records: &[],
        segment_bytes: options.segment_bytes,
        first: 0,
    };
    let supply = Supply { waiting: &|| None, again: NEVER };
    let active = Active::begin(disk, &options.dir, &supply, &beginning)?;
    let mut index = Index::default();
    index.begin(active.stamp, Arc::clone(&active.file), active.size);
    let sidecar = sidecar::Builder::begin(active.stamp, FIRST, 0, &[]);
    Ok(Recovered { index, active, sidecar, free: Free::new(), released: FIRST })
}

/// The files that wait for reuse.
fn free_files(disk: &dyn Disk, dir: &Path, names: &[String]) -> Result<Free, LogError> {
    let mut free = Free::new();
    for generation in names.iter().filter_map(|n| free_generation_of(n)) {
        let path = dir.join(free_name(generation));
        let failed = |e| LogError::Disk(format!("{}: {e}", path.display()));
        let len = disk.open(&path).and_then(|f| f.len()).map_err(failed)?;
        free.push_back((path, len));
    }
    Ok(free)
}

/// Removes what an earlier process was about to remove (`space::Leaving`): a file that has not its space yet is no help on a full disk.
fn remove_short(disk: &dyn Disk, free: &mut Free, segment_bytes: u64) {
    free.retain(|(path, bytes)| *bytes >= segment_bytes || disk.remove(path).is_err());
}

/// Finds the last segment that was begun. A file behind it in which nothing ever counted is removed: the
/// process ended in a rotation. `None`: the log is new.
fn find_tail(
    disk: &dyn Disk,
    dir: &Path,
    segments: &mut BTreeSet<u64>,
) -> Result<Option<Tail>, LogError> {
    let Some(&newest) = segments.last() else { return Ok(None) };
    let image = Image::load(disk, dir, newest)?;
    let (image, scan) = match image.scan_last()? {
        Some(scan) => (image, scan),
        None => {
            segments.remove(&newest);
            let before = find_before(disk, dir, segments, &image)?;
            disk.remove(&image.path)
                .and_then(|()| disk.sync_dir(dir))
                .map_err(|e| LogError::Disk(format!("removing {}: {e}", image.path.display())))?;
            let Some(before) = before else { return Ok(None) };
            before
        }
    };
    if scan.sealed {
        let next = dir.join(name(image.generation + 1));
        return Err(damaged(&next, "the segment is missing, the one before says it was begun"));
    }
    let released = scan.records.iter().rev().find_map(|found| match found.parsed.kind {
        Kind::Release => Some(found.parsed.index),
        Kind::Head => Some(found.parsed.term),
        _ => None,
    });
    let released = released.ok_or_else(|| image.damaged(0, "the segment has no head"))?;
    if released > image.generation {
        return Err(image.damaged(0, "it releases itself, or segments that were never begun"));
    }
    Ok(Some(Tail { image, scan, released }))
}

/// The segment before one that was not begun. `None`: there never was one.
fn find_before(
    disk: &dyn Disk,
    dir: &Path,
    segments: &BTreeSet<u64>,
    newest: &Image,
) -> Result<Option<(Image, Scan)>, LogError> {
    let not_begun =
        || newest.damaged(0, "the segment is not valid, and it is no interrupted rotation");
    let Some(&last) = segments.last() else {
        return if newest.generation == FIRST { Ok(None) } else { Err(not_begun()) };
    };
    if last + 1 != newest.generation {
        return Err(not_begun());
    }
    let image = Image::load(disk, dir, last)?;
    match image.scan_last()? {
        // A seal means that the successor was durable.
        Some(scan) if !scan.sealed => Ok(Some((image, scan))),
        _ => Err(not_begun()),
    }
}

/// Checks that every segment from the oldest needed to the last is there. Returns where each but the last ends,
/// as its successor says.
fn check_sequence(
    disk: &dyn Disk,
    dir: &Path,
    segments: &BTreeSet<u64>,
    tail: &Tail,
) -> Result<BTreeMap<u64, u64>, LogError> {
    let mut ends = BTreeMap::new();
    for generation in tail.released..tail.image.generation {
        let next = generation + 1;
        for needed in [generation, next] {
            if !segments.contains(&needed) {
                return Err(damaged(&dir.join(name(needed)), "the segment is missing"));
            }
        }
        let end = Image::load_head(disk, dir, next)?.previous_end()?;
        let end =
            end.ok_or_else(|| damaged(&dir.join(name(next)), "the segment's head is damaged"))?;
        ends.insert(generation, end);
    }
    Ok(ends)
}

/// Adds what a segment holds to the index.
fn replay(index: &mut Index, image: &Image, scan: &Scan) -> Result<(), LogError> {
    index.begin(scan.stamp, Arc::clone(&image.file), image.len);
    for found in &scan.records {
        let p = found.parsed;
        let record = Record {
            kind: p.kind,
            flag: p.flag,
            group: p.group,
            term: p.term,
            index: p.index,
            payload: found.payload.clone(),
        };
        index
            .place(&record, p.len, image.generation, found.offset as u64)
            .map_err(|what| image.damaged(found.offset, &what))?;
    }
    Ok(())
}

/// Makes durable what was read: it may have been in the page cache only, left there by a process that ended
/// between write and sync, or by a sync that failed. Only the last flush can be such. What is behind it is
/// zeroed, so that nothing of a torn flush is ever read.
fn secure(
    disk: &dyn Disk,
    dir: &Path,
    tail: &Tail,
    before: Option<u64>,
) -> Result<Active, LogError> {
    let Tail { image, scan, .. } = tail;
    let active = Active {
        file: Arc::clone(&image.file),
        path: image.path.clone(),
        stamp: scan.stamp,
        offset: scan.end as u64,
        size: image.len,
        flushes: scan.flushes,
        unconfirmed: scan.last_count > 0 && scan.flushes > 1,
    };
    let behind = image.bytes.get(scan.end..).unwrap_or_default();
    let dirty = behind.iter().take(LOG_FLUSH_BYTES_MAX).rposition(|&b| b != 0);
    let zero_to = dirty.map_or(scan.end, |at| scan.end + at + 1);
    // The head flush was written together with the segment's header.
    let from = if scan.flushes == 1 { 0 } else { scan.last_flush };
    active.rewrite(&image.bytes, from..scan.end, zero_to)?;
    disk.sync_dir(dir).map_err(|e| LogError::Disk(format!("syncing {}: {e}", dir.display())))?;
    if scan.flushes == 1
        && let Some(end) = before
    {
        seal_before(disk, dir, image.generation - 1, end)?;
    }
    Ok(active)
}

/// Seals the segment before the last, in case the process ended before it had done so.
fn seal_before(disk: &dyn Disk, dir: &Path, generation: u64, end: u64) -> Result<(), LogError> {
    let image = Image::load(disk, dir, generation)?;
    let scan = image.scan_closed(end)?;
    let sealed = Active {
        file: Arc::clone(&image.file),
        path: image.path.clone(),
        stamp: scan.stamp,
        offset: end,
        size: image.len,
        flushes: scan.flushes,
        unconfirmed: false,
    };
    sealed.seal(NEVER)
}

fn damaged(path: &Path, what: &str) -> LogError {
    LogError::Damaged { file: path.display().to_string(), offset: 0, what: what.to_owned() }
}
