// The GPU: a WebGPU device with the kernels of kernels.js, its memory, and recorded plans of kernels to run.
//
// A tensor is {buffer, offset, size}, in bytes: the form in which WebGPU takes it.
import { LabError } from "../errors.js";
import { KERNELS, LANES, NOW_FIELDS, wgsl } from "./kernels.js";

const SLOT = 256; // bytes between the constants of two launches
const FIRST_LAUNCHES = 16; // in one submission, until it is known how long they take
const MOST_MS = 250; // that one submission may take
const SILENCE = 60_000; // milliseconds without an answer after which a GPU counts as lost
const FILTERS = ["out-of-memory", "validation", "internal"]; // of the errors that WebGPU reports
const LIMITS = ["maxBufferSize", "maxStorageBufferBindingSize"];

// The GPU that this browser offers: {adapter, name, simulated}. Throws LabError, which says what is missing.
export async function findGPU() {
  if (!globalThis.navigator?.gpu) throw new LabError("This browser has no WebGPU.");
  const adapter = await inTime(navigator.gpu.requestAdapter({ powerPreference: "high-performance" }));
  if (!adapter) throw new LabError("This browser has WebGPU, but no GPU that it can use.");
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info ?? {};
  const names = [vendor, architecture, device, description].filter(Boolean).join(" ");
  // A browser without a GPU may simulate one on the processor: correct, and much slower than WebAssembly.
  const simulated = isFallbackAdapter || /swiftshader|llvmpipe|basic render/i.test(names);
  return { adapter, name: description || names, simulated: Boolean(simulated) };
}

export class GPU {
  // `half`: whether weights are stored as float16. Throws LabError, which says what is missing.
  static async open({ adapter }, half) {
    // A device has the smallest limits unless it is asked for more.
    const requiredLimits = Object.fromEntries(LIMITS.map(limit => [limit, adapter.limits[limit]]));
    try {
      return new GPU(await inTime(adapter.requestDevice({ requiredLimits })), half);
    } catch (error) {
      throw new LabError(`The GPU could not be opened: ${error.message}`);
    }
  }

  constructor(device, half) {
    Object.assign(this, { device, half, bytes: 0, made: [], pipelines: {}, failed: null });
    this.mostGroups = device.limits.maxComputeWorkgroupsPerDimension;
    this.largest = Math.min(...LIMITS.map(limit => device.limits[limit]));
    this.failure = new Promise((_, reject) => {
      this.fail = message => {
        this.failed ??= new LabError(message);
        reject(this.failed);
      };
      device.lost.then(({ reason, message }) => this.fail(`The GPU was lost (${reason}): ${message}`));
      device.onuncapturederror = ({ error }) => this.fail(`The GPU reports an error: ${error.message}`);
    });
    this.failure.catch(() => {}); // `wait` reports it
    this.now = this.alloc(Object.keys(NOW_FIELDS).length, GPUBufferUsage.UNIFORM);
  }

  // Make something, and wait until the GPU accepts it: a WebGPU call does not throw, its errors arrive later. If it
  // refuses, the buffers that were made are freed.
  async guarded(make) {
    const { device } = this;
    for (const filter of FILTERS) device.pushErrorScope(filter);
    this.made = [];
    const [{ value, reason }] = await Promise.allSettled([this.wait((async () => make())())]);
    const reports = await this.wait(Promise.all(FILTERS.map(() => device.popErrorScope())));
    const report = reports.find(Boolean);
    if (!report && !reason) return value;
    const asked = megabytes(this.bytes);
    for (const tensor of this.made) this.free(tensor);
    if (report instanceof GPUOutOfMemoryError) {
      throw new LabError(
        `The GPU's memory is too small for ${asked}: use fewer rows, a smaller model, or WebAssembly.`,
      );
    }
    throw reason ?? new LabError(`The GPU refuses: ${report.message}`);
  }

  // The promise's value, or an error if the GPU fails first, or does not answer.
  async wait(promise) {
    if (this.failed) throw this.failed;
    return inTime(Promise.race([promise, this.failure]), ({ message }) => this.fail(message));
  }

  // ---- Memory ----------------------------------------------------------------------------------------------------

  // `count` float32, all zero.
  alloc(count, usage = GPUBufferUsage.STORAGE) {
    const size = Math.max(16, Math.ceil(count / 4) * 16);
    if (size > this.largest) {
      throw new LabError(
        `The model needs a buffer of ${megabytes(size)}, but this GPU allows ${megabytes(this.largest)}: ` +
          "use 16 bits a weight, fewer rows, a smaller model, or WebAssembly.",
      );
    }
    const { COPY_SRC, COPY_DST } = GPUBufferUsage;
    const buffer = this.device.createBuffer({ size, usage: usage | COPY_SRC | COPY_DST });
    const tensor = { buffer, offset: 0, size };
    this.bytes += size;
    this.made.push(tensor);
    return tensor;
  }

  free(tensor) {
    this.bytes -= tensor.size;
    tensor.buffer.destroy();
  }

  // Write an array into a tensor, `bytes` after its beginning.
  write({ buffer, offset }, array, bytes = 0) {
    this.device.queue.writeBuffer(buffer, offset + bytes, array);
  }

  copy(from, to) {
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(from.buffer, from.offset, to.buffer, to.offset, to.size);
    this.device.queue.submit([encoder.finish()]);
  }

  setNow(values) {
    const data = new DataView(new ArrayBuffer(4 * Object.keys(NOW_FIELDS).length));
    setNumbers(data, 0, NOW_FIELDS, values);
    this.write(this.now, data);
  }

  // ---- Plans -----------------------------------------------------------------------------------------------------
  // A step launches the same kernels on the same buffers each time. `record` runs the model's JavaScript once: it
  // launches nothing, but writes a plan of what to launch. `run` runs the plan, again and again.

  // The plan of all that `describe` launches. What it allocates and the plan's constants belong to the plan.
  async record(describe) {
    return this.guarded(async () => {
      this.launches = [];
      describe();
      const { launches } = this;
      // The constants of all launches lie in one buffer, one slot each.
      const numbers = new DataView(new ArrayBuffer(launches.length * SLOT));
      launches.forEach(({ kernel, args, count }, index) => {
        const types = { count: "u32", ...KERNELS[kernel].constants };
        setNumbers(numbers, index * SLOT, types, { ...args, count });
      });
      const constants = this.alloc(numbers.byteLength / 4, GPUBufferUsage.UNIFORM);
      this.write(constants, numbers);
      const pipelines = await Promise.all(launches.map(({ kernel }) => this.pipeline(kernel)));
      const steps = launches.map((launch, index) => {
        const slot = { buffer: constants.buffer, offset: index * SLOT, size: SLOT };
        return this.bound(launch, pipelines[index], slot);
      });
      return { steps, constants, atOnce: FIRST_LAUNCHES };
    });
  }

  // Note one launch: tensors and constants by name.
  launch(kernel, args) {
    const { buffers, constants, threads, rows } = KERNELS[kernel];
    for (const name of Object.keys({ ...buffers, ...constants })) {
      if (name !== "now" && args[name] === undefined) throw new Error(`${kernel} needs ${name}.`);
    }
    this.launches.push({ kernel, args, count: (threads ?? rows)(args) });
  }

  bound({ kernel, args, count }, pipeline, slot) {
    const { buffers, threads } = KERNELS[kernel];
    const tensors = Object.keys(buffers).map(name => (name === "now" ? this.now : args[name]));
    const entries = [slot, ...tensors].map((resource, binding) => ({ binding, resource }));
    const layout = pipeline.getBindGroupLayout(0);
    const group = this.device.createBindGroup({ label: kernel, layout, entries });
    const groups = threads ? Math.ceil(count / LANES) : count;
    const y = Math.ceil(groups / this.mostGroups);
    return { pipeline, group, x: Math.ceil(groups / y), y };
  }

  // Compiled when it is first needed.
  pipeline(kernel) {
    const { device } = this;
    const uses = [{ type: "now" }, ...Object.values(KERNELS[kernel].buffers)].map(({ type, writes }) =>
      type === "now" ? "uniform" : writes ? "storage" : "read-only-storage",
    );
    const entry = (type, binding) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } });
    this.pipelines[kernel] ??= device.createComputePipelineAsync({
      label: kernel,
      layout: device.createPipelineLayout({
        bindGroupLayouts: [device.createBindGroupLayout({ entries: uses.map(entry) })],
      }),
      compute: {
        module: device.createShaderModule({ label: kernel, code: wgsl(KERNELS[kernel], this.half) }),
      },
    });
    return this.pipelines[kernel];
  }

  // Run a plan, then read these tensors: Float32Arrays. A driver may reset a GPU that spends seconds on one submission,
  // so the plan is submitted in parts that take about MOST_MS: few launches at first, then as many as the last run allows.
  async run(plan, wanted) {
    const { steps, atOnce } = plan;
    const begin = performance.now();
    for (let first = 0; first < steps.length; first += atOnce) {
      if (first) await this.wait(this.device.queue.onSubmittedWorkDone());
      this.submit(steps.slice(first, first + atOnce), first + atOnce < steps.length ? [] : wanted);
    }
    const result = await this.copied(wanted);
    plan.atOnce = Math.max(1, Math.floor((steps.length * MOST_MS) / (performance.now() - begin)));
    return result;
  }

  // What these tensors hold, as Float32Arrays.
  read(wanted) {
    this.submit([], wanted);
    return this.copied(wanted);
  }

  submit(steps, wanted) {
    const encoder = this.device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const { pipeline, group, x, y } of steps) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(x, y);
    }
    pass.end();
    this.copyOut(encoder, wanted);
    this.device.queue.submit([encoder.finish()]);
  }

  // JavaScript can read a buffer only if it is made for that alone, so tensors are copied to such a buffer.
  copyOut(encoder, wanted) {
    const size = total(wanted);
    if (size > (this.staging?.size ?? 0)) {
      this.staging?.destroy();
      const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
      this.staging = this.device.createBuffer({ size, usage });
    }
    let at = 0;
    for (const { buffer, offset, size } of wanted) {
      encoder.copyBufferToBuffer(buffer, offset, this.staging, at, size);
      at += size;
    }
  }

  // Wait until the GPU is done, and fetch what `copyOut` copied.
  async copied(wanted) {
    const { staging } = this;
    const size = total(wanted);
    try {
      await this.wait(staging.mapAsync(GPUMapMode.READ, 0, size));
    } catch (error) {
      // When a device is lost, mapAsync may fail before device.lost reports it.
      await Promise.race([this.failure, new Promise(resolve => setTimeout(resolve, 1000))]);
      throw error;
    }
    const all = new Float32Array(staging.getMappedRange(0, size).slice(0));
    staging.unmap();
    let end = 0;
    return wanted.map(({ size }) => {
      end += size;
      return all.subarray((end - size) / 4, end / 4);
    });
  }

  close() {
    this.device.destroy();
  }
}

// The promise's value, or an error if it takes too long; `late` hears that error.
async function inTime(promise, late = () => {}) {
  let timer;
  const silence = new Promise((_, reject) => {
    const give = error => {
      late(error);
      reject(error);
    };
    const error = new LabError(`The GPU has not answered for ${SILENCE / 1000} seconds.`);
    timer = setTimeout(give, SILENCE, error);
  });
  try {
    return await Promise.race([promise, silence]);
  } finally {
    clearTimeout(timer);
  }
}

function setNumbers(data, at, types, values) {
  Object.entries(types).forEach(([name, type], index) => {
    if (type === "f32") data.setFloat32(at + 4 * index, values[name] ?? 0, true);
    else data.setUint32(at + 4 * index, values[name] ?? 0, true);
  });
}

function total(tensors) {
  return tensors.reduce((sum, { size }) => sum + size, 0);
}

function megabytes(bytes) {
  return `${Number((bytes / 1e6).toPrecision(3))} MB`;
}
