//! Reading an archive back: whatever is damaged is found, named, and never silently restored.

mod support;

#[path = "verify/damage.rs"]
mod damage;
#[path = "verify/pages.rs"]
mod pages;
#[path = "verify/shop.rs"]
mod shop;
#[path = "verify/stats.rs"]
mod stats;
#[path = "verify/stores.rs"]
mod stores;
#[path = "verify/whole.rs"]
mod whole;
