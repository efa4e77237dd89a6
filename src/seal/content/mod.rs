//! What index objects say: summaries, contents lists, maps, manifests, intents. Pure encoders and decoders.

pub mod summary;
