//! The booted image: what a device does from the first start over updates to the moment its plug is pulled, seen from its
//! serial console, over SSH and at the host's broker. Every machine boots the image that `image/build qemu` made.

mod cuts;
mod faults;
mod first;
mod release;
mod updates;
mod world;
