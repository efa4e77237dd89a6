//! What `repo stats` says of a repository whose content is known.

use std::time::Duration;

use walrecv::verify::Options;
use walrecv::verify::stats::{Stats, stats};

use crate::shop::{Shop, run};

fn look(shop: &Shop) -> Stats {
    let options = Options { patience: Duration::from_millis(50), ..Options::default() };
    run(stats(shop.archive(), &options)).expect("stats")
}

fn sum(shop: &Shop, folder: &str) -> u64 {
    let prefix = format!("{}/{folder}", shop.archive().names.root());
    run(shop.archive().repo.list(&prefix)).expect("a listing").iter().map(|entry| entry.size).sum()
}

#[test]
fn bytes_are_counted_by_kind_and_by_what_each_backup_alone_holds() {
    let shop = Shop::new();
    let told = look(&shop);
    let classes = &told.classes;
    let sums = [("packs", classes.packs.bytes), ("maps", classes.maps.bytes), ("wal", classes.wal.bytes)];
    for (folder, bytes) in sums.into_iter().chain([("tail", classes.tails.bytes)]) {
        assert_eq!(bytes, sum(&shop, folder), "{folder}");
    }
    assert_eq!(classes.manifests.bytes, sum(&shop, "backups") + sum(&shop, "manifests"));
    let root = shop.archive().names.root();
    let all = run(shop.archive().repo.list(&root)).expect("a listing");
    assert_eq!((told.objects, told.bytes), (all.len() as u64, all.iter().map(|entry| entry.size).sum()));

    // The second backup names the first one's map and packs: deleting the first gives its manifests back and nothing else.
    let [first, second] = [0, 1].map(|number| shop.backups[number].manifest.id.to_string());
    let own = |id: &str| {
        let manifest = run(shop.archive().repo.head(&shop.archive().names.backup(id))).expect("a look").expect("one");
        let intent = run(shop.archive().repo.head(&shop.archive().names.intent(id))).expect("a look").expect("one");
        manifest.size + intent.size + sum(&shop, &format!("manifests/{id}"))
    };
    assert_eq!((told.backups[0].id.as_str(), told.backups[0].alone_bytes), (first.as_str(), own(&first)));
    let added = sum(&shop, &format!("packs/{second}")) + sum(&shop, &format!("maps/{second}"));
    assert_eq!(told.backups[1].alone_bytes, own(&second) + added);
    assert_eq!((told.live_bytes, told.dead_share), (Some(told.pack_bytes), Some(0.0)), "{told:?}");
    assert!(told.problems.is_empty());

    // Backups of one day, WAL of today: the basis is what lies between.
    assert_eq!((told.days.len(), told.days[0].backups), (2, 2), "{:?}", told.days);
    let forecast = told.forecast.clone().expect("months lie between");
    assert!(forecast.basis_days > 30.0 && forecast.bytes_per_day <= classes.wal.bytes, "{forecast:?}");
    assert!(forecast.bytes_in_90_days >= forecast.bytes_in_30_days && forecast.bytes_in_30_days >= told.bytes);

    let whole = |told: &Stats| {
        let all: u64 = told.days.iter().map(|day| day.backup_bytes + day.wal_bytes + day.other_bytes).sum();
        assert_eq!(all, told.bytes, "{:?}", told.days);
        told.days.iter().map(|day| day.backup_bytes).sum::<u64>()
    };
    let stored = whole(&told);
    let gone = run(shop.archive().repo.head(&shop.archive().names.backup(&first))).expect("a look").expect("one").size;

    // Without the first: a relation that is gone, two pages that were replaced, the old pg_control.
    run(shop.archive().repo.delete(&shop.archive().names.backup(&first))).expect("a delete");
    let told = look(&shop);
    // What it stored is still there, and of its day.
    assert_eq!(whole(&told), stored - gone);
    let forecast = told.forecast.as_ref().expect("months lie between");
    let packs_of_the_first = sum(&shop, &format!("packs/{first}"));
    let later = told.classes.wal.bytes + told.classes.tails.bytes + packs_of_the_first;
    assert!(forecast.bytes_per_day as f64 * forecast.basis_days >= later as f64 * 0.9, "{forecast:?}, {later} bytes");
    let dead = told.pack_bytes - told.live_bytes.expect("maps that read well");
    let exact = (12 + 2 + 1) * 8192;
    assert!((exact - 3 * 8192..=exact).contains(&dead), "{dead} bytes are dead, of {exact}");

    // Maps that cannot be read: no figure is made up.
    let map = shop.archive().names.map(&first, 0);
    run(shop.archive().repo.delete(&map)).expect("a delete");
    let told = look(&shop);
    assert_eq!((told.live_bytes, told.dead_share, told.problems.len()), (None, None, 1), "{told:?}");
}
