//! The worker process: the only file that names ort (beside `placement`). Fences itself in, loads one model, then answers
//! the doorbell until the socket ends. Holds no state that outlives it; whatever goes wrong here costs the daemon one window.

use std::{
    fmt::Display,
    io::Write,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{MsgFlags, recv, send},
        time::TimeSpec,
    },
};
use ort::{
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch},
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, Session, builder::GraphOptimizationLevel},
    value::{DynTensor, DynValue, Outlet, TensorElementType, ValueType},
};

use super::{
    InferError,
    channel::{self, Answer, Hello, Layout, Loaded, Prepare, Prepared, Ready, Tensor},
    judge::judge,
    placement::placement,
    sandbox::{self, Fences, Profile},
    warm_up::WarmUp,
};
use crate::{
    config::Provider,
    host::sys::{Sealed, SharedMemory},
};

/// Runs as the worker; the socket is standard input. Returns when the parent is gone.
///
/// # Errors
/// The model does not load, or the parent says what nobody understands; the parent was told as well.
pub fn main(socket: OwnedFd) -> Result<(), InferError> {
    Ok(work(socket.as_fd())?)
}

fn work(socket: BorrowedFd<'_>) -> Result<(), String> {
    let (hello, model): (Hello, _) = channel::recv_with_fd(socket)?;
    let fences = match fence(&hello) {
        Ok(fences) => fences,
        Err(why) => return channel::answer(socket, &Answer::<Loaded>::Err(format!("fence the worker in: {why}"))),
    };
    let mut session = match load(&hello, model, &fences) {
        Ok(session) => session,
        Err(why) => return channel::answer(socket, &Answer::<Loaded>::Err(why)),
    };
    let loaded = Loaded {
        inputs: session.inputs().iter().map(describe).collect(),
        outputs: session.outputs().iter().map(describe).collect(),
        runtime: hello.runtime.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        placement: placement(&session)?,
        sandbox: fences.words(),
    };
    channel::answer(socket, &Answer::Ok(loaded))?;

    let (prepare, _): (Prepare, _) = channel::recv_with_fd(socket)?;
    let prepared = Bound::new(&session, &prepare, hello.provider.name != "cpu").and_then(|mut bound| {
        let outputs = bound.trial(&mut session)?;
        Ok((bound, outputs))
    });
    let mut bound = match prepared {
        Ok((bound, outputs)) => {
            channel::answer(socket, &Answer::Ok(Prepared { outputs }))?;
            bound
        }
        Err(why) => return channel::answer(socket, &Answer::<Prepared>::Err(why)),
    };

    if hello.engine.as_ref().is_some_and(|engine| engine.writable) {
        // The trial run was the last step of a build.
        return Ok(());
    }

    let (layout, memory): (Layout, _) = channel::recv_with_fd(socket)?;
    let memory = memory.ok_or("the shared memory did not come")?;
    let mut memory =
        SharedMemory::map(memory.as_fd(), layout.bytes()).map_err(|why| format!("map shared memory: {why}"))?;
    // From here on there are windows, and nothing else.
    fences.before_serving()?;
    let judged = hello.judge.as_deref().map(judge).unwrap_or_default();
    channel::answer(socket, &Answer::Ok(Ready { judged }))?;
    let warm_up = hello.warm_up.then(WarmUp::default);
    serve(socket, (&mut session, &mut bound), warm_up, &layout, &mut memory)
}

fn serve(
    socket: BorrowedFd<'_>,
    (session, bound): (&mut Session, &mut Bound),
    mut warm_up: Option<WarmUp>,
    layout: &Layout,
    memory: &mut SharedMemory,
) -> Result<(), String> {
    let (mut ring, serves) = ([0u8; 8], Instant::now());
    loop {
        if let Some(warm_up) = &mut warm_up
            && let Some(wait) = warm_up.wait(serves.elapsed())
            && is_silent(socket, wait)
        {
            // On the last window's values. A fault of the model shows with a window.
            let _ = session.run_binding(&bound.binding);
            warm_up.warmed();
        }
        match recv(socket.as_raw_fd(), &mut ring, MsgFlags::empty()) {
            Ok(8) => {}
            Ok(0) => return Ok(()),
            Ok(n) => return Err(format!("a ring of {n} bytes")),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(why) => return Err(format!("hear the doorbell: {why}")),
        }
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| ring[at + i])) as usize;
        let count = number(4);
        for i in 0..count.min(layout.slots) {
            let slot = layout.slot(i);
            let began = Instant::now();
            let failed = bound.run(session, layout, memory, slot).err();
            if let Some(why) = &failed {
                // Not eprintln: where the pipe is full it panics.
                let _ = writeln!(std::io::stderr(), "run the model: {why}");
            }
            let took = began.elapsed();
            if i == 0
                && let Some(warm_up) = &mut warm_up
            {
                warm_up.ran(began - serves, took);
            }
            let took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
            memory.write(slot, &[if failed.is_some() { channel::FAILED } else { channel::RAN }, took_us]);
            memory.store(0, i as u32 + 1);
        }
        send(socket.as_raw_fd(), &ring, MsgFlags::MSG_NOSIGNAL).map_err(|why| format!("answer the doorbell: {why}"))?;
    }
}

/// Waits for so long; whether nothing came.
fn is_silent(socket: BorrowedFd<'_>, wait: Duration) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    matches!(ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None), Ok(0))
}

fn fence(hello: &Hello) -> Result<Fences, String> {
    let profile = if hello.provider.name == "cpu" { Profile::Cpu } else { Profile::Accelerator };
    let folder = |path: &Path| path.parent().map(Path::to_owned);
    let folders: Vec<PathBuf> = [Some(hello.runtime.as_path()), hello.provider.plugin.as_deref()]
        .into_iter()
        .filter_map(|path| folder(path?))
        .collect();
    sandbox::before_library(profile, &folders, hello.memory_bytes, hello.engine.as_ref())
}

fn load(hello: &Hello, model: Option<OwnedFd>, fences: &Fences) -> Result<Session, String> {
    let sealed = model.ok_or_else(|| "it did not come".to_owned()).and_then(|fd| {
        let sealed = Sealed::adopt(fd).map_err(|why| why.to_string())?;
        sealed.map().map_err(|why| why.to_string())
    });
    let bytes = sealed.map_err(|why| format!("read the model: {why}"))?;
    let environment = environment(&hello.runtime)?;
    let builder = Session::builder(environment)
        .map_err(text)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(text)?
        // One thread and no spinning: a board has other work, and small models gain nothing from more.
        .with_intra_threads(1)
        .map_err(text)?
        .with_inter_threads(1)
        .map_err(text)?
        .with_intra_op_spinning(false)
        .map_err(text)?
        .with_inter_op_spinning(false)
        .map_err(text)?
        .with_config_entry("session.record_ep_graph_assignment_info", "1")
        .map_err(text)?;
    let mut builder = match (&hello.provider.plugin, known(&hello.provider)) {
        (None, _) if hello.provider.name == "cpu" => builder,
        (None, Some(provider)) => builder.with_execution_providers([provider.error_on_failure()]).map_err(text)?,
        (None, None) => return Err(format!("no provider is called `{}`", hello.provider.name)),
        (Some(plugin), _) => {
            let name = &hello.provider.name;
            environment.register_ep_library(name, plugin).map_err(text)?;
            let mut devices = environment.devices().filter(|d| d.ep().is_ok_and(|ep| ep != "CPUExecutionProvider"));
            // The first is the plugin's own choice; no device at all would be a silent run on the processor.
            let device = devices.next().ok_or_else(|| format!("{} finds no device", plugin.display()))?;
            let prefix = device.ep().map_err(text)?.to_owned();
            let options: Vec<(String, String)> =
                hello.provider.options.iter().map(|(k, v)| (format!("{prefix}.{k}"), v.clone())).collect();
            builder.with_devices([device], Some(&options)).map_err(text)?
        }
    };
    fences.before_model()?;
    builder.commit_from_memory(&bytes).map_err(|why| format!("load the model: {}", text(why)))
}

/// The providers this program knows by name; which of them a library brings is another matter.
fn known(provider: &Provider) -> Option<ExecutionProviderDispatch> {
    fn with<P: ArbitrarilyConfigurableExecutionProvider>(ep: P, provider: &Provider) -> P {
        provider.options.iter().fold(ep, |ep, (key, value)| ep.with_arbitrary_config(key, value))
    }
    Some(match provider.name.as_str() {
        "tensorrt" => with(ep::TensorRT::default(), provider).build(),
        "cuda" => with(ep::CUDA::default(), provider).build(),
        "openvino" => with(ep::OpenVINO::default(), provider).build(),
        "qnn" => with(ep::QNN::default(), provider).build(),
        "xnnpack" => with(ep::XNNPACK::default(), provider).build(),
        _ => return None,
    })
}

fn environment(library: &Path) -> Result<&'static ort::environment::Environment, String> {
    let builder =
        ort::init_from(library).map_err(|why| format!("load ONNX Runtime from {}: {why}", library.display()))?;
    let environment = builder.with_telemetry(false).build().map_err(text)?;
    // Lives as long as the process: its destructor would race the library's own at exit.
    Ok(Box::leak(Box::new(environment)))
}

/// The runtime's errors span lines; ours are one.
fn text(why: impl Display) -> String {
    why.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn describe(outlet: &Outlet) -> Tensor {
    let (kind, shape) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => (kind_word(*ty).to_owned(), shape.to_vec()),
        other => (other.to_string(), Vec::new()),
    };
    Tensor { name: outlet.name().to_owned(), kind, shape }
}

fn kind_word(kind: TensorElementType) -> &'static str {
    match kind {
        TensorElementType::Float32 => "float32",
        TensorElementType::Float64 => "float64",
        TensorElementType::Float16 => "float16",
        TensorElementType::Bfloat16 => "bfloat16",
        TensorElementType::Int8 => "int8",
        TensorElementType::Int16 => "int16",
        TensorElementType::Int32 => "int32",
        TensorElementType::Int64 => "int64",
        TensorElementType::Uint8 => "uint8",
        TensorElementType::Uint16 => "uint16",
        TensorElementType::Uint32 => "uint32",
        TensorElementType::Uint64 => "uint64",
        TensorElementType::Bool => "bool",
        TensorElementType::String => "string",
        _ => "a number format that is not supported here",
    }
}

/// The model's inputs, allocated once and written in place for each run, and the outputs that are wanted.
struct Bound {
    inputs: Vec<(String, DynTensor)>,
    outputs: Vec<String>,
    binding: IoBinding,
    /// The provider may have memory of its own: an input is copied there when it is bound, so it is bound again for each run.
    rebinds: bool,
    scratch32: Vec<f32>,
    scratch64: Vec<f64>,
}

impl Bound {
    fn new(session: &Session, prepare: &Prepare, rebinds: bool) -> Result<Self, String> {
        let mut binding = session.create_binding().map_err(text)?;
        let mut inputs = Vec::new();
        for (name, shape) in &prepare.inputs {
            let declared = session.inputs().iter().find(|i| i.name() == name).ok_or("unknown input")?;
            let ValueType::Tensor { ty, .. } = declared.dtype() else {
                return Err(format!("input `{name}` is no tensor"));
            };
            let mut tensor = DynTensor::new(session.allocator(), *ty, shape.clone()).map_err(text)?;
            let values = shape.iter().product::<i64>().max(0) as usize;
            let known = prepare.known.get(name).filter(|known| known.len() == values).cloned();
            fill(name, &mut tensor, &known.unwrap_or_else(|| vec![1.0; values]))?;
            binding.bind_input(name.as_str(), &tensor).map_err(text)?;
            inputs.push((name.clone(), tensor));
        }
        let cpu =
            MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput).map_err(text)?;
        for name in &prepare.outputs {
            binding.bind_output_to_device(name.as_str(), &cpu).map_err(text)?;
        }
        let outputs = prepare.outputs.clone();
        Ok(Self { inputs, outputs, binding, rebinds, scratch32: Vec::new(), scratch64: Vec::new() })
    }

    /// One run on ones: warms up, and tells how many values each output has.
    fn trial(&mut self, session: &mut Session) -> Result<Vec<usize>, String> {
        let results = session.run_binding(&self.binding).map_err(|why| format!("try the model: {}", text(why)))?;
        let mut sizes = Vec::new();
        for name in &self.outputs {
            let value = results.get(name.as_str()).ok_or_else(|| format!("output `{name}` did not come"))?;
            drain(value, &mut self.scratch64).map_err(|why| format!("output `{name}`: {why}"))?;
            sizes.push(self.scratch64.len());
        }
        Ok(sizes)
    }

    fn run(
        &mut self,
        session: &mut Session,
        layout: &Layout,
        memory: &mut SharedMemory,
        slot: usize,
    ) -> Result<(), String> {
        for ((name, tensor), &(offset, values)) in self.inputs.iter_mut().zip(&layout.inputs) {
            self.scratch32.resize(values, 0.0);
            memory.read(slot + offset, &mut self.scratch32);
            fill(name, tensor, &self.scratch32)?;
            if self.rebinds {
                self.binding.bind_input(name.as_str(), &*tensor).map_err(text)?;
            }
        }
        let results = session.run_binding(&self.binding).map_err(text)?;
        for (name, &(offset, values)) in self.outputs.iter().zip(&layout.outputs) {
            let value = results.get(name.as_str()).ok_or_else(|| format!("output `{name}` did not come"))?;
            drain(value, &mut self.scratch64)?;
            if self.scratch64.len() != values {
                return Err(format!("output `{name}` has {} values, and had {values} before", self.scratch64.len()));
            }
            memory.write(slot + offset, &self.scratch64);
        }
        Ok(())
    }
}

macro_rules! by_kind {
    ($kind:expr, $apply:ident, $($element:ident => $rust:ty),*) => {
        match $kind {
            $(TensorElementType::$element => $apply!($rust),)*
            other => Err(format!("{} cannot be used", kind_word(other))),
        }
    };
}

/// Writes values into a tensor of any number type; `name` is the input's.
///
/// # Errors
/// A value that the type cannot hold: another one in its place would be a wrong answer.
fn fill(name: &str, tensor: &mut DynTensor, from: &[f32]) -> Result<(), String> {
    let kind = *tensor.data_type();
    let wrong = |x: f32| format!("input `{name}` is {}, which cannot hold the value {x}", kind_word(kind));
    macro_rules! float {
        ($rust:ty) => {{
            let (_, to) = tensor.try_extract_tensor_mut::<$rust>().map_err(text)?;
            to.iter_mut().zip(from).for_each(|(to, from)| *to = <$rust>::from(*from));
            Ok(())
        }};
    }
    macro_rules! half {
        ($rust:ty) => {{
            let (_, to) = tensor.try_extract_tensor_mut::<$rust>().map_err(text)?;
            to.iter_mut().zip(from).try_for_each(|(to, from)| {
                *to = <$rust>::from_f32(*from);
                if to.is_infinite() && from.is_finite() { Err(wrong(*from)) } else { Ok(()) }
            })
        }};
    }
    macro_rules! put {
        ($rust:ty) => {{
            let (_, to) = tensor.try_extract_tensor_mut::<$rust>().map_err(text)?;
            to.iter_mut().zip(from).try_for_each(|(to, from)| {
                let whole = from.round();
                // No number lies within no bounds.
                if !(whole >= <$rust>::MIN as f32 && whole <= <$rust>::MAX as f32) {
                    return Err(wrong(*from));
                }
                *to = whole as $rust;
                Ok(())
            })
        }};
    }
    match kind {
        TensorElementType::Float32 => float!(f32),
        TensorElementType::Float64 => float!(f64),
        TensorElementType::Float16 => half!(half::f16),
        TensorElementType::Bfloat16 => half!(half::bf16),
        TensorElementType::Bool => {
            let (_, to) = tensor.try_extract_tensor_mut::<bool>().map_err(text)?;
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from != 0.0);
            Ok(())
        }
        _ => by_kind!(kind, put, Int8 => i8, Int16 => i16, Int32 => i32, Int64 => i64, Uint8 => u8, Uint16 => u16,
            Uint32 => u32, Uint64 => u64),
    }
}

/// Reads values out of a tensor of any number type.
fn drain(value: &DynValue, into: &mut Vec<f64>) -> Result<(), String> {
    into.clear();
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err("is no tensor".into());
    };
    macro_rules! float {
        ($rust:ty) => {{
            let (_, from) = value.try_extract_tensor::<$rust>().map_err(text)?;
            into.extend(from.iter().map(|x| f64::from(*x)));
            Ok(())
        }};
    }
    macro_rules! take {
        ($rust:ty) => {{
            let (_, from) = value.try_extract_tensor::<$rust>().map_err(text)?;
            into.extend(from.iter().map(|x| *x as f64));
            Ok(())
        }};
    }
    match *ty {
        TensorElementType::Float16 => float!(half::f16),
        TensorElementType::Bfloat16 => float!(half::bf16),
        TensorElementType::Bool => float!(bool),
        kind => by_kind!(kind, take, Float32 => f32, Float64 => f64, Int8 => i8, Int16 => i16, Int32 => i32,
            Int64 => i64, Uint8 => u8, Uint16 => u16, Uint32 => u32, Uint64 => u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PROVIDERS;

    #[test]
    fn every_provider_of_the_configuration_is_built_here_and_no_other_name_is() {
        let is_known = |name: &str| known(&Provider { name: name.into(), ..Provider::cpu() }).is_some();
        let unknown: Vec<_> = PROVIDERS.into_iter().filter(|name| !is_known(name)).collect();
        assert_eq!((unknown, is_known("hexagon")), (vec!["cpu"], false), "the runtime itself has the processor");
    }
}
