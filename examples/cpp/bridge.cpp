// An engine in C++: resampler and gated block from a checkpoint, handles freed by RAII, errors as
// exceptions.
//
//   cargo build --release -p xattn-capi c++ -std=c++17 -Icapi/include examples/cpp/bridge.cpp
//   target/release/libxattn_c.a -lpthread -ldl -o bridge && ./bridge
//
// usage: bridge [cpu|cuda] [CHECKPOINT]. Without a checkpoint it writes a small OpenFlamingo one to
// the folder for temporary files and reads that. On CUDA (a library built with `--features cuda`)
// tensors lie in memory that the program has of the driver, whose functions come from libcuda.so.1
// at run time, so that it compiles without CUDA.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "xattn.h"

namespace {

void check(int32_t status) {
    if (status != XATTN_STATUS_OK) throw std::runtime_error(std::string(xattn_status_name(status)) + ": " + xattn_last_error());
}

// A handle that frees itself. `Handle<xattn_device, xattn_device_free> device;  check(xattn_device_open("cpu", device.out()));`
template <class T, xattn_status (*Free)(T *)>
class Handle {
    T *handle = nullptr;

public:
    Handle() = default;
    Handle(const Handle &) = delete;
    Handle &operator=(const Handle &) = delete;
    ~Handle() { Free(handle); }
    T **out() { return &handle; }
    operator T *() const { return handle; }
};

// Memory of a CUDA device, as an engine has it.
class Cuda {
    int (*alloc)(uint64_t *, size_t) = nullptr;
    int (*release)(uint64_t) = nullptr;
    int (*to_device)(uint64_t, const void *, size_t) = nullptr;
    int (*to_host)(void *, uint64_t, size_t) = nullptr;

    static void driver(int result) {
        if (result != 0) throw std::runtime_error("CUDA error " + std::to_string(result));
    }

public:
    Cuda() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        if (!library) throw std::runtime_error(dlerror());
        auto find = [library](const char *name, auto &function) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            if (!function) throw std::runtime_error(std::string("libcuda.so.1 has no ") + name);
        };
        int (*init)(unsigned) = nullptr, (*retain)(void **, int) = nullptr, (*current)(void *) = nullptr;
        find("cuInit", init), find("cuDevicePrimaryCtxRetain", retain), find("cuCtxSetCurrent", current);
        find("cuMemAlloc_v2", alloc), find("cuMemFree_v2", release);
        find("cuMemcpyHtoD_v2", to_device), find("cuMemcpyDtoH_v2", to_host);
        void *context = nullptr;
        driver(init(0)), driver(retain(&context, 0)), driver(current(context));
    }
    uint64_t upload(const std::vector<float> &data) const {
        uint64_t address = 0;
        driver(alloc(&address, data.size() * sizeof(float)));
        driver(to_device(address, data.data(), data.size() * sizeof(float)));
        return address;
    }
    void download(uint64_t address, std::vector<float> &data) const {
        driver(to_host(data.data(), address, data.size() * sizeof(float)));
    }
    void free(uint64_t address) const { release(address); }
};

// Floats with a shape, and what the C interface calls it.
struct Tensor {
    std::vector<float> data;
    xattn_tensor view{};
    const Cuda *cuda = nullptr;

    explicit Tensor(std::initializer_list<uint64_t> shape) {
        uint64_t elements = 1;
        for (uint64_t extent : shape) view.shape[view.rank++] = extent, elements *= extent;
        data.resize(elements);
        view.struct_size = sizeof view;
        view.data = data.data();
        view.bytes = elements * sizeof(float);
        view.dtype = XATTN_F32;
    }
    Tensor(const Tensor &) = delete;
    Tensor &operator=(const Tensor &) = delete;
    ~Tensor() {
        if (cuda) cuda->free(reinterpret_cast<uintptr_t>(view.data));
    }
    // Copies to the device, if there is one. From then on the address is the device's.
    void upload(const Cuda *device) {
        if (!device) return;
        view.data = reinterpret_cast<void *>(static_cast<uintptr_t>(device->upload(data)));
        cuda = device;
    }
    // Copies back.
    const std::vector<float> &download() {
        if (cuda) cuda->download(reinterpret_cast<uintptr_t>(view.data), data);
        return data;
    }
};

// Values that depend on where they stand, of the size that trained weights have.
void fill(std::vector<float> &data, unsigned seed) {
    for (size_t i = 0; i < data.size(); i++) {
        seed = seed * 1664525u + 1013904223u;
        data[i] = static_cast<float>(static_cast<int>(seed >> 24) - 128) / 512.0f;
    }
}

// A resampler (width 16, 8 heads of 8, 3 latents) and a gated block (text of width 24), named as
// OpenFlamingo names them.
void write_checkpoint(const std::filesystem::path &path) {
    struct Weight {
        std::string name;
        std::vector<int> shape;
    };
    const std::string r = "perceiver.", l = r + "layers.0.", b = "lang_encoder.gated_cross_attn_layers.0.";
    const std::vector<Weight> weights = {
        {r + "latents", {3, 16}}, {r + "norm.weight", {16}}, {r + "norm.bias", {16}},
        {l + "0.norm_media.weight", {16}}, {l + "0.norm_media.bias", {16}},
        {l + "0.norm_latents.weight", {16}}, {l + "0.norm_latents.bias", {16}},
        {l + "0.to_q.weight", {64, 16}}, {l + "0.to_kv.weight", {128, 16}}, {l + "0.to_out.weight", {16, 64}},
        {l + "1.0.weight", {16}}, {l + "1.0.bias", {16}}, {l + "1.1.weight", {64, 16}}, {l + "1.3.weight", {16, 64}},
        {b + "attn.norm.weight", {24}}, {b + "attn.norm.bias", {24}}, {b + "attn.to_q.weight", {64, 24}},
        {b + "attn.to_kv.weight", {128, 16}}, {b + "attn.to_out.weight", {24, 64}}, {b + "attn_gate", {1}},
        {b + "ff.0.weight", {24}}, {b + "ff.0.bias", {24}}, {b + "ff.1.weight", {96, 24}}, {b + "ff.3.weight", {24, 96}},
        {b + "ff_gate", {1}},
    };
    std::string header = "{";
    std::vector<float> all;
    for (const Weight &w : weights) {
        size_t elements = 1;
        std::string shape;
        for (int n : w.shape) elements *= static_cast<size_t>(n), shape += (shape.empty() ? "" : ",") + std::to_string(n);
        std::vector<float> values(elements);
        fill(values, static_cast<unsigned>(all.size()));
        const size_t begin = all.size() * sizeof(float), end = begin + elements * sizeof(float);
        header += (header.size() > 1 ? ",\"" : "\"") + w.name + "\":{\"dtype\":\"F32\",\"shape\":[" + shape + "],\"data_offsets\":[" +
                  std::to_string(begin) + "," + std::to_string(end) + "]}";
        all.insert(all.end(), values.begin(), values.end());
    }
    header += "}";
    header.append((8 - header.size() % 8) % 8, ' ');
    const uint64_t size = header.size();
    std::ofstream file(path, std::ios::binary);
    for (int byte = 0; byte < 8; byte++) file.put(static_cast<char>(size >> (8 * byte)));
    file << header;
    file.write(reinterpret_cast<const char *>(all.data()), static_cast<std::streamsize>(all.size() * sizeof(float)));
    if (!file) throw std::runtime_error("cannot write " + path.string());
}

// Two images of 9 feature tokens to media tokens, and where there is a gated block, five tokens of
// text through it.
std::vector<float> run(const char *kind, const std::string &path) {
    Handle<xattn_device, xattn_device_free> device;
    check(xattn_device_open(kind, device.out()));
    Handle<xattn_checkpoint, xattn_checkpoint_free> checkpoint;
    xattn_checkpoint_options options{};
    options.struct_size = sizeof options;
    options.family = "open-flamingo";
    check(xattn_checkpoint_open(path.c_str(), &options, checkpoint.out()));
    Handle<xattn_resampler, xattn_resampler_free> resampler;
    check(xattn_resampler_load(checkpoint, device, XATTN_F32, resampler.out()));
    xattn_resampler_sizes sizes{};
    check(xattn_resampler_describe(resampler, &sizes));

    const std::unique_ptr<Cuda> cuda(std::string(kind) == "cuda" ? new Cuda : nullptr);
    Tensor features{1, 2, 9, sizes.feature_width}, media{1, 2, sizes.latents, sizes.output_width};
    fill(features.data, 7);
    features.upload(cuda.get()), media.upload(cuda.get());
    xattn_resampler_args resample{};
    resample.struct_size = sizeof resample;
    resample.features = &features.view;
    resample.out = &media.view;
    check(xattn_resampler_run(resampler, &resample));
    xattn_checkpoint_contents contents{};
    check(xattn_checkpoint_describe(checkpoint, &contents));
    if (contents.gated_blocks == 0) return media.download();

    Handle<xattn_gated_block, xattn_gated_block_free> block;
    check(xattn_gated_block_load(checkpoint, device, 0, XATTN_F32, block.out()));
    xattn_gated_block_sizes widths{};
    check(xattn_gated_block_describe(block, &widths));
    Tensor kv{1, 2 * sizes.latents, widths.kv_width};
    kv.upload(cuda.get());
    // The same memory, one row of tokens for both images.
    xattn_tensor tokens = media.view;
    tokens.rank = 3, tokens.shape[1] = 2 * sizes.latents, tokens.shape[2] = widths.media_width;
    xattn_project_media_args project{};
    project.struct_size = sizeof project;
    project.media = &tokens;
    project.kv = &kv.view;
    check(xattn_project_media_run(block, &project));

    Tensor text{1, 5, widths.width};
    fill(text.data, 11);
    text.upload(cuda.get());
    // Five words of 32 bits, copied as they are.
    const int32_t phi[] = {0, 1, 1, 2, 2};
    Tensor words{1, 5};
    std::memcpy(words.data.data(), phi, sizeof phi);
    words.upload(cuda.get());
    xattn_tensor media_index = words.view;
    media_index.dtype = XATTN_I32;
    xattn_gated_block_args args{};
    args.struct_size = sizeof args;
    args.x_in_place = 1;
    args.kv = &kv.view;
    args.visibility = XATTN_VISIBILITY_SAME_MEDIA;
    args.media_index = &media_index;
    args.keys_per_media = static_cast<uint32_t>(sizes.latents);
    args.out = &text.view;
    check(xattn_gated_block_run(block, &args));
    return text.download();
}

}  // namespace

int main(int argc, char **argv) try {
    const char *kind = argc > 1 ? argv[1] : "cpu";
    std::filesystem::path path = argc > 2 ? argv[2] : "";
    if (argc <= 2) {
        path = std::filesystem::temp_directory_path() / ("xattn-example-" + std::to_string(getpid()) + ".safetensors");
        write_checkpoint(path);
    }
    // The kernels beside the f64 reference that judges them.
    const std::vector<float> fast = run(kind, path.string()), truth = run("reference", path.string());
    float largest = 0, error = 0;
    for (size_t i = 0; i < fast.size(); i++) {
        largest = std::max(largest, std::fabs(truth[i]));
        error = std::max(error, std::fabs(fast[i] - truth[i]));
    }
    std::printf("%zu numbers, largest %g, largest error on %s %g\n", fast.size(), largest, kind, error);
    if (argc <= 2) std::filesystem::remove(path);
    // 1e-5 of the largest: two hundred roundings of f32 in the worst direction.
    return fast.size() == truth.size() && largest > 0 && error <= 1e-5f * largest && xattn_live_handles() == 0 ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
