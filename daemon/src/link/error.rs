//! Why a broker is not reached: for `kentledge-fleet`, which uses the client without the stage.

crate::error::text_error! {
    /// The broker cannot be reached, refuses, or this packet cannot be sent to it; in words that say what to do.
    LinkError;
}
