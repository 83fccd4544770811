//! What was kept is found again, also in parts; what is damaged is not believed; the limit holds.

use super::file::PartName;
use super::{CacheSettings, Gather, Keeper, WeightCache};
use crate::load::PART_BYTES;
use bytes::Bytes;
use flotilla_engine::weights::{Extent, Synthetic, WeightSource, read_chunk};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{ModelSpec, TensorSlice, WeightsId};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const ID: WeightsId = WeightsId([7; 32]);

fn source() -> Synthetic {
    Synthetic::new(ModelSpec::published("gpt-oss-20b").unwrap(), 3)
}

/// 20 MB in two parts, wider than it is when four ranks share it.
fn slice() -> TensorSlice {
    let tensor = TensorId::Layer(2, LayerTensor::DownBlocks);
    TensorSlice { tensor, ranges: vec![3..13, 0..2880, 20..65, 0..16] }
}

fn cache(dir: &Path, bytes_max: u64, id: WeightsId) -> WeightCache {
    WeightCache::new(&CacheSettings { dir: dir.to_owned(), bytes_max }, id)
}

/// Keeps all of `slice`, and waits until it is written.
fn keep(cache: &WeightCache, slice: &TensorSlice) {
    let keeper = cache.keeper().expect("the folder can be written");
    hand_over(&keeper, slice, Extent::whole(0, slice));
    settle(&keeper, &cache.folder);
}

fn hand_over(keeper: &Keeper, slice: &TensorSlice, extent: Extent) {
    for chunk in extent.chunks() {
        let (bytes, digest) = read_chunk(&source(), slice, chunk.clone()).unwrap();
        keeper.keep(0, slice, chunk.start, &Bytes::from(bytes), digest);
    }
}

/// The writer has nothing before it any more, and renamed what it finished.
fn settle(keeper: &Keeper, folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let unfinished = || files(folder).iter().any(|file| file.extension().is_some_and(|end| end == "tmp"));
    while keeper.is_behind() || unfinished() {
        assert!(Instant::now() < deadline, "the writer does not come to its end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// `slice` out of the cache, chunk by chunk.
fn read(cache: &WeightCache, slice: &TensorSlice) -> Vec<Option<Vec<u8>>> {
    let kept = cache.kept(source().spec());
    let around = kept.around(slice);
    let Some(first) = around.first() else { return Vec::new() };
    let mut gather = Gather::new(first, slice);
    Extent::whole(0, slice).chunks().map(|chunk| gather.read(chunk).map(|(bytes, _)| bytes)).collect()
}

fn expected(slice: &TensorSlice) -> Vec<Option<Vec<u8>>> {
    let chunk = |chunk| Some(read_chunk(&source(), slice, chunk).unwrap().0);
    Extent::whole(0, slice).chunks().map(chunk).collect()
}

#[test]
fn what_was_kept_is_found_again_and_so_is_any_part_of_it() {
    let dir = tempfile::tempdir().unwrap();
    keep(&cache(dir.path(), u64::MAX, ID), &slice());
    let again = cache(dir.path(), u64::MAX, ID);
    assert_eq!(files(&again.folder).len(), 2);
    assert_eq!(read(&again, &slice()), expected(&slice()));
    for ranges in
        [[3..13, 0..2880, 20..43, 0..16], [5..13, 0..2880, 20..65, 0..16], [4..9, 7..2000, 30..31, 0..16]]
    {
        let part = TensorSlice { ranges: ranges.to_vec(), ..slice() };
        assert_eq!(read(&again, &part), expected(&part), "{part}");
    }
    let wider = TensorSlice { ranges: vec![3..13, 0..2880, 20..66, 0..16], ..slice() };
    assert!(read(&again, &wider).is_empty());
    assert!(read(&cache(dir.path(), u64::MAX, WeightsId([8; 32])), &slice()).is_empty());
}

#[test]
fn chunks_may_come_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), u64::MAX, ID);
    let keeper = cache.keeper().unwrap();
    let parts: Vec<Extent> = Extent::whole(0, &slice()).parts(5 << 20).collect();
    parts.into_iter().rev().for_each(|part| hand_over(&keeper, &slice(), part));
    settle(&keeper, &cache.folder);
    assert_eq!(read(&cache, &slice()), expected(&slice()));
}

/// The first of the two files spoiled: nothing of the spoiled chunk, or of the file, is believed.
#[test]
fn a_damaged_file_is_dropped_and_the_rest_is_used() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(&str, Spoil, usize); 6] = [
        ("a bit of the third chunk", |file| *file.last_mut().unwrap() ^= 4, 15),
        ("a bit of the first chunk", |file| file[4096] ^= 1, 0),
        ("a bit of a digest", |file| file[100] ^= 1, 0),
        ("cut", |file| file.truncate(5000), 0),
        ("longer", |file| file.push(0), 0),
        ("empty", Vec::clear, 0),
    ];
    for (what, spoil, good) in cases {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), u64::MAX, ID);
        keep(&cache, &slice());
        let file = files(&cache.folder).remove(0);
        let mut bytes = fs::read(&file).unwrap();
        spoil(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let (found, expected) = (read(&cache, &slice()), expected(&slice()));
        assert_eq!(found[..good], expected[..good], "{what}");
        assert!(found[good..16].iter().all(Option::is_none), "{what}");
        assert_eq!(found[16..], expected[16..], "{what}");
        assert!(!file.exists(), "{what}");
        keep(&cache, &slice());
        assert_eq!(read(&cache, &slice()), expected, "{what}, kept again");
    }
}

#[test]
fn what_was_used_longest_ago_makes_room_and_what_is_in_use_stays() {
    let dir = tempfile::tempdir().unwrap();
    let part = |layer| TensorSlice {
        tensor: TensorId::Layer(layer, LayerTensor::DownBlocks),
        ranges: vec![0..1, 0..2880, 0..90, 0..16],
    };
    let bytes = PartName::at(&part(0), 0).file_bytes();
    let one = |layer, days: u64, id| {
        let cache = cache(dir.path(), 3 * bytes, id);
        keep(&cache, &part(layer));
        let file = cache.folder.join(PartName::at(&part(layer), 0).file_name());
        let used = SystemTime::now() - Duration::from_secs(86400 * days);
        File::options().write(true).open(&file).unwrap().set_modified(used).unwrap();
        file
    };
    let [older, oldest, newer] = [one(0, 2, ID), one(1, 3, WeightsId([9; 32])), one(2, 1, ID)];
    let last = cache(dir.path(), 3 * bytes, ID);
    keep(&last, &part(3));
    assert!(!oldest.exists() && older.exists() && newer.exists(), "of other weights too");
    // Reading is using.
    assert_eq!(read(&last, &part(0)), expected(&part(0)));
    keep(&last, &part(4));
    assert!(older.exists() && !newer.exists());
    keep(&last, &part(5));
    assert_eq!(files(&last.folder).len(), 3, "nothing that is in use made room");
    assert!(read(&last, &part(5)).is_empty());
}

#[test]
fn a_slow_disk_is_not_waited_for() {
    let big = TensorSlice::whole(TensorId::Embed, source().spec());
    let (keeper, jobs) = Keeper::without_writer();
    let part = |number: usize| number * PART_BYTES;
    let chunk = Bytes::from_static(&[0; 64]);
    let digest = flotilla_engine::weights::Digest([0; 32]);
    for number in 0..12 {
        keeper.keep(0, &big, part(number), &chunk, digest);
    }
    assert_eq!(jobs.try_iter().count(), 8, "as many as may wait");
    // Later chunks of a part go where its first went.
    keeper.keep(0, &big, part(9) + 1, &chunk, digest);
    keeper.keep(0, &big, part(3) + 1, &chunk, digest);
    assert_eq!(jobs.try_iter().count(), 1);
    // What is given up of a part makes room for others, whatever of it has come.
    keeper.leave_out(0, &big, part(3) + 2);
    keeper.keep(0, &big, part(3) + 65, &chunk, digest);
    assert_eq!(jobs.try_iter().count(), 0);
    keeper.keep(0, &big, part(13), &chunk, digest);
    keeper.keep(0, &big, part(14), &chunk, digest);
    assert_eq!(jobs.try_iter().count(), 0, "some bytes of it are still to be written");
}

/// Nothing waits for the rest of a part whose beginning was on the disk.
#[test]
fn a_part_that_comes_in_part_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), u64::MAX, ID);
    let keeper = cache.keeper().unwrap();
    let whole = Extent::whole(0, &slice());
    let second = PART_BYTES..slice().bytes();
    for number in 0..20 {
        keeper.leave_out(number, &slice(), PART_BYTES + 1);
    }
    hand_over(&keeper, &slice(), Extent { bytes: second.clone(), ..whole.clone() });
    assert!(!keeper.is_behind() && files(&cache.folder).is_empty());
    hand_over(&keeper, &slice(), Extent { bytes: 0..PART_BYTES, ..whole });
    settle(&keeper, &cache.folder);
    assert_eq!(files(&cache.folder).len(), 1);
}

#[test]
fn a_full_folder_is_not_looked_through_for_each_part() {
    let dir = tempfile::tempdir().unwrap();
    let settings = CacheSettings { dir: dir.path().to_owned(), bytes_max: 100 };
    let folder = dir.path().join(super::folder_name(ID));
    fs::create_dir(&folder).unwrap();
    let in_use = folder.join("lm_head.weight~0-5,0-9~0-90");
    fs::write(&in_use, [0; 90]).unwrap();
    let mut room = super::room::Room::new(&settings, SystemTime::UNIX_EPOCH);
    room.look_pause = Duration::MAX;
    assert!(!room.take(20));
    fs::remove_file(in_use).unwrap();
    assert!(!room.take(20), "it did not look");
    room.look_pause = Duration::ZERO;
    assert!(room.take(20));
}

#[test]
fn a_folder_that_cannot_be_written_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    assert!(cache(&blocked, u64::MAX, ID).keeper().is_none());
    // One that vanishes meanwhile ends the writer, and nobody else.
    let cache = cache(&dir.path().join("gone"), u64::MAX, ID);
    let keeper = cache.keeper().unwrap();
    fs::remove_dir_all(&cache.folder).unwrap();
    hand_over(&keeper, &slice(), Extent::whole(0, &slice()));
    drop(keeper);
    assert!(read(&cache, &slice()).is_empty());
}

#[test]
fn only_what_was_abandoned_long_ago_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), u64::MAX, ID);
    fs::create_dir_all(&cache.folder).unwrap();
    let [old, new] = ["1-2-3.tmp", "1-2-4.tmp"].map(|name| cache.folder.join(name));
    for (path, seconds) in [(&old, 3600), (&new, 60)] {
        let file = File::create_new(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }
    drop(cache.keeper());
    assert!(!old.exists() && new.exists());
}

/// The user's folder may have been something else before it was a cache: its files, old as they are, make no room, and
/// take none.
#[test]
fn files_that_are_not_of_the_cache_are_neither_removed_nor_counted() {
    let dir = tempfile::tempdir().unwrap();
    let ours = super::folder_name(WeightsId([9; 32]));
    let upper = ours.to_uppercase().replace('0', "A");
    let foreign = [
        "photos/a.jpg".into(),
        "photos/draft.tmp".into(),
        "photos/1-2-3.tmp".into(),
        "photos/lm_head.weight~0-5,0-9~0-90".into(),
        "gpt-oss-120b/model-00000.safetensors".into(),
        format!("{upper}/1-2-3.tmp"),
        format!("{ours}/notes.txt"),
        format!("{ours}/draft.tmp"),
        format!("{ours}/1-2-x.tmp"),
        format!("{ours}/1-2-3-4.tmp"),
        format!("{ours}/a~b~c"),
        format!("{ours}/~0-5~0-9"),
        format!("{ours}/a~0-5~0-9~0-9"),
    ]
    .map(|name| dir.path().join(name));
    let mine = [format!("{ours}/1-2-3.tmp"), format!("{ours}/lm_head.weight~0-5,0-9~0-90")];
    let mine = mine.map(|name| dir.path().join(name));
    for path in foreign.iter().chain(&mine) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [0; 90]).unwrap();
        let old = SystemTime::now() - Duration::from_secs(2 * 86400);
        File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    let part = TensorSlice { ranges: vec![0..1, 0..2880, 0..90, 0..16], ..slice() };
    let cache = cache(dir.path(), PartName::at(&part, 0).file_bytes(), ID);
    keep(&cache, &part);
    assert_eq!(foreign.iter().filter(|path| !path.exists()).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert!(mine.iter().all(|path| !path.exists()), "what is of the cache goes");
    assert_eq!(read(&cache, &part), expected(&part), "there is room for the whole limit");
}

#[test]
fn two_workers_may_keep_the_same_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let caches = [(); 2].map(|()| cache(dir.path(), u64::MAX, ID));
    let keepers = caches.each_ref().map(|cache| cache.keeper().unwrap());
    for part in Extent::whole(0, &slice()).parts(PART_BYTES) {
        keepers.iter().for_each(|keeper| hand_over(keeper, &slice(), part.clone()));
    }
    keepers.iter().for_each(|keeper| settle(keeper, &caches[0].folder));
    assert_eq!(files(&caches[0].folder).len(), 2);
    assert_eq!(read(&caches[1], &slice()), expected(&slice()));
}
