// Fetches cases/cases.json (written by examples/web_cases.rs), runs each case on WebGPU, judges it, shows it.
// With `?report` the outcome is posted to /report besides, for scripts/web-test.

const byId = (id) => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ---- Devices

async function openDevice() {
  if (!navigator.gpu) {
    const why = isSecureContext ? "This browser has no WebGPU." : "WebGPU needs https, or a page from this machine (127.0.0.1).";
    throw new Error(`${why} Chrome and Edge 113, Safari 26 and Firefox 141 have it; on Linux it may have to be enabled.`);
  }
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("This browser has WebGPU and finds no adapter: no graphics driver that it trusts.");
  showAdapter(adapter);
  // Neither features nor limits: what every browser offers must do.
  const device = await adapter.requestDevice();
  device.lost.then((info) => finish(`The device was lost: ${info.message}`));
  return device;
}

function showAdapter(adapter) {
  const { info, limits, features } = adapter;
  const rows = {
    Vendor: info.vendor,
    Architecture: info.architecture,
    Device: info.device,
    Description: info.description,
    Features: [...features].filter((f) => ["shader-f16", "subgroups", "timestamp-query"].includes(f)).join(", ") || "none that matter here",
    "Workgroup memory": `${limits.maxComputeWorkgroupStorageSize} bytes`,
    "Storage buffers": `${limits.maxStorageBuffersPerShaderStage} per stage`,
    Browser: navigator.userAgent,
  };
  for (const [name, value] of Object.entries(rows)) {
    byId("adapter").append(element("dt", name), element("dd", value || "not told"));
  }
}

// ---- Running

const pipelines = new Map();

// Compiles a text once. Every message of the compiler is in the error.
async function pipelineFor(device, dispatch) {
  const known = pipelines.get(dispatch.text);
  if (known) return known;
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code: dispatch.text, label: dispatch.entry });
  const { messages } = await module.getCompilationInfo();
  const buffers = dispatch.bindings.map((b) => (b.readOnly ? "read-only-storage" : "storage"));
  const layout = device.createBindGroupLayout({
    entries: ["uniform", ...buffers].map((type, binding) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } })),
  });
  let pipeline, refused;
  try {
    pipeline = await device.createComputePipelineAsync({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: dispatch.entry },
    });
  } catch (error) {
    refused = error.message;
  }
  const invalid = await device.popErrorScope();
  if (refused || invalid) {
    const lines = dispatch.text.split("\n");
    const said = messages.map((m) => `${m.type} in line ${m.lineNum}, column ${m.linePos}: ${m.message}\n    ${lines[m.lineNum - 1] ?? ""}`);
    throw new Error([`${dispatch.entry} does not compile`, ...said, refused, invalid?.message].filter(Boolean).join("\n"));
  }
  const compiled = { pipeline, layout };
  pipelines.set(dispatch.text, compiled);
  return compiled;
}

function bufferWith(device, usage, bytes) {
  const buffer = device.createBuffer({ size: Math.ceil(bytes.byteLength / 16) * 16, usage, mappedAtCreation: true });
  new Uint8Array(buffer.getMappedRange()).set(bytes);
  buffer.unmap();
  return buffer;
}

// Runs a case: the bytes of each output's buffer, and how long compiling and running took.
async function run(device, test, data) {
  const started = performance.now();
  const compiled = [];
  for (const dispatch of test.dispatches) compiled.push(await pipelineFor(device, dispatch));
  const ready = performance.now();

  device.pushErrorScope("validation");
  device.pushErrorScope("out-of-memory");
  const storage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC;
  const buffers = test.buffers.map(([at, size]) => bufferWith(device, storage, new Uint8Array(data, at, size)));
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  const uniforms = test.dispatches.map(({ grid, params, bindings }, i) => {
    const uniform = bufferWith(device, GPUBufferUsage.UNIFORM, new Uint8Array(Uint32Array.from(params).buffer));
    const ranges = [{ buffer: uniform }, ...bindings.map((b) => ({ ...b, buffer: buffers[b.buffer] }))];
    const entries = ranges.map((resource, binding) => ({ binding, resource }));
    pass.setPipeline(compiled[i].pipeline);
    pass.setBindGroup(0, device.createBindGroup({ layout: compiled[i].layout, entries }));
    pass.dispatchWorkgroups(...grid);
    return uniform;
  });
  pass.end();
  const copies = test.outputs.map(({ buffer }) => {
    const { size } = buffers[buffer];
    const copy = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    encoder.copyBufferToBuffer(buffers[buffer], 0, copy, 0, size);
    return copy;
  });
  device.queue.submit([encoder.finish()]);
  const faults = [await device.popErrorScope(), await device.popErrorScope()].filter(Boolean);
  if (faults.length) throw new Error(faults.map((fault) => fault.message).join("\n"));
  const results = [];
  for (const copy of copies) {
    await copy.mapAsync(GPUMapMode.READ);
    results.push(copy.getMappedRange().slice(0));
  }
  const times = { compile: ready - started, run: performance.now() - ready };
  for (const buffer of [...buffers, ...uniforms, ...copies]) buffer.destroy();
  return { results, times };
}

// ---- Judging, as src/verify/compare.rs does

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

const words = new Uint32Array(1);
const asFloat = new Float32Array(words.buffer);

function brain(bits) {
  words[0] = bits << 16;
  return asFloat[0];
}

const decoders = {
  f32: (bytes, n) => new Float32Array(bytes, 0, n),
  i32: (bytes, n) => new Int32Array(bytes, 0, n),
  u32: (bytes, n) => new Uint32Array(bytes, 0, n),
  f16: (bytes, n) => Float64Array.from(new Uint16Array(bytes, 0, n), half),
  bf16: (bytes, n) => Float64Array.from(new Uint16Array(bytes, 0, n), brain),
};

const sizes = { f32: 4, i32: 4, u32: 4, f16: 2, bf16: 2 };

function judge(output, before, after, data) {
  const reals = ([at, bytes]) => new Float64Array(data, at, bytes / 8);
  const [expected, bounds] = [reals(output.expected), reals(output.bounds)];
  const actual = decoders[output.dtype](after, expected.length);
  const [was, is] = [before, new Uint8Array(after)];
  const size = sizes[output.dtype];
  let worst = { error: 0, bound: bounds.reduce((a, b) => Math.max(a, b), 0), share: 0 };
  let squares = 0;
  let elements = 0;
  let failure;
  for (let i = 0; i < expected.length; i++) {
    if (bounds[i] < 0) {
      for (let byte = i * size; byte < (i + 1) * size; byte++) {
        if (was[byte] !== is[byte]) failure ??= `element ${i} of the guard band was overwritten`;
      }
      continue;
    }
    elements++;
    const [a, e] = [actual[i], expected[i]];
    if (a === e || (Number.isNaN(a) && Number.isNaN(e))) continue;
    if (!Number.isFinite(a) || !Number.isFinite(e)) {
      failure ??= `element ${i}: expected ${e}, got ${a}`;
      continue;
    }
    const error = Math.abs(a - e);
    squares += error * error;
    if (error / bounds[i] > worst.share) worst = { error, bound: bounds[i], share: error / bounds[i], at: `element ${i}: expected ${e}, got ${a}` };
  }
  const rms = Math.sqrt(squares / Math.max(elements, 1));
  if (worst.share > 1) failure ??= `error ${worst.error.toExponential(3)} exceeds ${worst.bound.toExponential(3)}; ${worst.at}`;
  if (output.rmsBound !== null && rms > output.rmsBound) failure ??= `RMS error ${rms.toExponential(3)} exceeds ${output.rmsBound.toExponential(3)}`;
  return { ...worst, failure: failure && `${output.name}: ${failure}` };
}

async function check(device, test) {
  try {
    const response = await fetch(`cases/${test.file}`);
    if (!response.ok) throw new Error(`cases/${test.file}: ${response.status} ${response.statusText}`);
    const data = await response.arrayBuffer();
    const { results, times } = await run(device, test, data);
    const judged = test.outputs.map((output, i) => judge(output, new Uint8Array(data, ...test.buffers[output.buffer]), results[i], data));
    const failures = judged.map((j) => j.failure).filter(Boolean);
    const worst = judged.reduce((a, b) => (b.share > a.share ? b : a));
    return { worst, times, failure: failures.join("\n") };
  } catch (error) {
    return { failure: error.message };
  }
}

// ---- Showing

const report = { passed: 0, failed: 0, failures: [] };
let finished = false;

function show(test, { worst, times, failure }) {
  const row = document.createElement("tr");
  const number = (label, text) => element("td", text, { class: "number", "data-label": label });
  const name = document.createElement("td");
  name.append(element("code", test.case.replaceAll(",", ", ")));
  if (failure) name.append(element("pre", failure));
  const verdict = failure ? "failed" : "passed";
  const errors = worst ? [worst.error.toExponential(1), worst.bound.toExponential(1)] : ["none", "none"];
  const spent = times ? [times.compile.toFixed(0), times.run.toFixed(0)] : ["none", "none"];
  row.append(element("td", verdict, { class: verdict }), name, number("Error", errors[0]), number("Bound", errors[1]));
  row.append(number("Compile, ms", spent[0]), number("Run, ms", spent[1]));
  byId("cases").append(row);
}

// Says how it ended, once.
async function finish(fault) {
  if (finished) return;
  finished = true;
  const good = !fault && report.passed > 0 && report.failed === 0;
  const counts = `${report.passed} passed, ${report.failed} failed`;
  byId("summary").textContent = fault ? `${fault} (${counts})` : counts;
  byId("summary").className = good ? "passed" : "failed";
  if (new URLSearchParams(location.search).has("report")) {
    const adapter = [...byId("adapter").querySelectorAll("dd")].slice(0, 4).map((dd) => dd.textContent).join(", ");
    await fetch("/report", { method: "POST", body: JSON.stringify({ ...report, good, adapter, fault: fault ?? null }) });
  }
}

async function main() {
  const device = await openDevice();
  const response = await fetch("cases/cases.json");
  if (!response.ok) throw new Error("There is no cases/cases.json: run `scripts/web-test --serve`, which writes it.");
  const { cases } = await response.json();
  for (const [i, test] of cases.entries()) {
    byId("summary").textContent = `Case ${i + 1} of ${cases.length}: ${test.case.split(":")[0]}`;
    const outcome = await check(device, test);
    if (outcome.failure) {
      report.failed++;
      report.failures.push(`${test.case}\n${outcome.failure}`);
    } else {
      report.passed++;
    }
    show(test, outcome);
  }
  await finish();
}

main().catch((error) => finish(error.message));
