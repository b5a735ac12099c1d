//! Which nodes of a model run where, asked of ONNX Runtime itself: a provider that was asked for and could not start, or
//! took nothing, shows here and nowhere else. The second file with `unsafe`: ort has no wrapper for these three calls.
#![allow(unsafe_code)]

use std::{collections::BTreeMap, ffi::CStr, ptr};

use ort::{AsPointer, session::Session, sys};

use super::channel::Placed;

/// Nodes by provider, after all of the runtime's optimisations. The session must have been made with
/// `session.record_ep_graph_assignment_info = 1`.
pub fn placement(session: &Session) -> Result<Vec<Placed>, String> {
    let api = ort::api();
    let mut by_provider: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    // SAFETY: the session lives throughout; the runtime fills each out-value or answers with a status; the arrays it gives
    // belong to the session and are only read here, within the lengths that came with them.
    unsafe {
        let (mut graphs, mut n) = (ptr::null(), 0usize);
        check((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut graphs, &raw mut n))?;
        for graph in (0..n).map(|i| *graphs.add(i)) {
            let mut name = ptr::null();
            check((api.EpAssignedSubgraph_GetEpName)(graph, &raw mut name))?;
            let ops = by_provider.entry(text(name)).or_default();
            let (mut nodes, mut n) = (ptr::null(), 0usize);
            check((api.EpAssignedSubgraph_GetNodes)(graph, &raw mut nodes, &raw mut n))?;
            for node in (0..n).map(|i| *nodes.add(i)) {
                let mut op = ptr::null();
                check((api.EpAssignedNode_GetOperatorType)(node, &raw mut op))?;
                *ops.entry(text(op)).or_default() += 1;
            }
        }
    }
    let placed =
        |(provider, ops): (String, BTreeMap<String, usize>)| Placed { provider, nodes: ops.values().sum(), ops };
    Ok(by_provider.into_iter().map(placed).collect())
}

/// SAFETY: `name` is null or a C string of the runtime's.
unsafe fn text(name: *const std::ffi::c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// SAFETY: `status` is what a call of the runtime answered; it is released here.
unsafe fn check(status: sys::OrtStatusPtr) -> Result<(), String> {
    // SAFETY: as above.
    unsafe { ort::Error::result_from_status(status) }.map_err(|why| format!("ask where the nodes run: {why}"))
}
