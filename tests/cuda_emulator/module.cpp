// Images, functions, launches. An image is the shared object that NVRTC's stand-in made.

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "device.h"
#include "memory.h"
#include "runtime.h"
#include "stream.h"

namespace emulator {

namespace {

struct Function {
    const Kernel* kernel;
    std::string name;
    int dynamic_shared = 49152;
    // Those that are alive have not run yet, or are in a graph.
    std::vector<std::weak_ptr<Launch>> launches;
};

struct Module {
    void* library;
    std::map<std::string, std::unique_ptr<Function>> functions;

    bool is_needed() const {
        const auto alive = [](const std::weak_ptr<Launch>& launch) { return !launch.expired(); };
        return std::any_of(functions.begin(), functions.end(), [&](const auto& named) {
            return std::any_of(named.second->launches.begin(), named.second->launches.end(), alive);
        });
    }
};

std::vector<std::unique_ptr<Module>> modules;

// By kernel, for the report at the end of the process.
std::map<std::string, Statistics>& all_statistics() {
    static auto* const statistics = new std::map<std::string, Statistics>;
    return *statistics;
}

// XATTN_EMULATOR_STATISTICS names a file to which each process adds a line per kernel.
void report() {
    const char* path = getenv("XATTN_EMULATOR_STATISTICS");
    FILE* file = path == nullptr || *path == 0 ? nullptr : fopen(path, "a");
    if (file == nullptr) {
        return;
    }
    for (const auto& [name, s] : all_statistics()) {
        fprintf(file, "%s launches=%llu blocks=%llu", name.c_str(), static_cast<unsigned long long>(s.launches),
                static_cast<unsigned long long>(s.blocks));
        const std::pair<Access, const char*> kinds[] = {{LDMATRIX, "ldmatrix"}, {COPY, "copy_async"}, {WIDE, "wide"}};
        for (const auto& [kind, word] : kinds) {
            fprintf(file, " %s=%llu %s_conflicts=%llu", word, static_cast<unsigned long long>(s.phases[kind]), word,
                    static_cast<unsigned long long>(s.conflicts[kind]));
        }
        fprintf(file, "\n");
    }
    fclose(file);
}

// The call has no length: an ELF file ends with its section headers. 0 where it is none.
size_t image_bytes(const void* image) {
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64) {
        return 0;
    }
    return header.e_shoff + size_t{header.e_shnum} * header.e_shentsize;
}

// Sanitizers read lines from the file when they report: it stays where XATTN_EMULATOR_MODULES says
// so.
void* load(const void* image, size_t bytes) {
    const char* keep = getenv("XATTN_EMULATOR_MODULES");
    const char* folder = keep != nullptr ? keep : getenv("TMPDIR");
    std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/xattn-emulated-XXXXXX";
    const int file = mkstemp(path.data());
    if (file < 0) {
        complain("cuModuleLoadData: cannot write %s", path.c_str());
        return nullptr;
    }
    const bool written = write(file, image, bytes) == static_cast<ssize_t>(bytes);
    close(file);
    void* library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (library == nullptr) {
        complain("cuModuleLoadData: %s", written ? dlerror() : "cannot write the image");
    }
    if (keep == nullptr) {
        unlink(path.c_str());
    }
    return library;
}

// Of this library, not of those that it needs.
const void* own_symbol(void* library, const char* name) {
    void* const symbol = dlsym(library, name);
    link_map* map = nullptr;
    Dl_info info;
    if (symbol == nullptr || dlinfo(library, RTLD_DI_LINKMAP, &map) != 0 || dladdr(symbol, &info) == 0) {
        return nullptr;
    }
    return reinterpret_cast<uintptr_t>(info.dli_fbase) == map->l_addr ? symbol : nullptr;
}

CUresult check_image(const Image* image) {
#if defined(XATTN_SANITIZE_ADDRESS)
    constexpr uint32_t SANITIZER_HERE = 1;
#elif defined(XATTN_SANITIZE_THREAD)
    constexpr uint32_t SANITIZER_HERE = 2;
#else
    constexpr uint32_t SANITIZER_HERE = 0;
#endif
    if (image == nullptr || image->abi != ABI || image->sanitizer != SANITIZER_HERE) {
        complain("cuModuleLoadData: the image was made by another version of the emulator");
        return CUDA_ERROR_INVALID_IMAGE;
    }
    const uint32_t device = static_cast<uint32_t>(architecture());
    const bool runs = image->architecture / 10 == device / 10 && image->architecture <= device;
    return runs ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}

Module* module_of(CUmodule handle) {
    const auto found = std::find_if(modules.begin(), modules.end(), [&](const auto& m) { return m.get() == reinterpret_cast<Module*>(handle); });
    return found == modules.end() ? nullptr : found->get();
}

Function* function_of(CUfunction handle) {
    for (const auto& module : modules) {
        for (const auto& [name, function] : module->functions) {
            if (function.get() == reinterpret_cast<Function*>(handle)) {
                return function.get();
            }
        }
    }
    return nullptr;
}

void execute(const Launch& what) {
    statistics = &all_statistics()[what.name];
    if (!run(what)) {
        break_context(CUDA_ERROR_LAUNCH_FAILED);
    }
    if (std::string story; !allocations_intact(story)) {
        complain("kernel %s: %s", what.name.c_str(), story.c_str());
        break_context(CUDA_ERROR_ILLEGAL_ADDRESS);
    }
}

} // namespace

} // namespace emulator

using namespace emulator;

CUDA_API CUresult cuModuleLoadData(CUmodule* out, const void* image) {
    counted(__func__);
    if (!context_is_current()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    const Guard guard(lock());
    if (out == nullptr || image == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const size_t bytes = image_bytes(image);
    void* library = bytes == 0 ? nullptr : load(image, bytes);
    if (library == nullptr) {
        return CUDA_ERROR_INVALID_IMAGE;
    }
    if (const CUresult result = check_image(static_cast<const Image*>(own_symbol(library, "emulator_image"))); result != CUDA_SUCCESS) {
        dlclose(library);
        return result;
    }
    static const bool registered = atexit(report) == 0;
    (void)registered;
    modules.push_back(std::make_unique<Module>(Module{library, {}}));
    *out = reinterpret_cast<CUmodule>(modules.back().get());
    return sticky_error();
}

CUDA_API CUresult cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned, void*, void*) {
    return cuModuleLoadData(out, image);
}

CUDA_API CUresult cuModuleUnload(CUmodule handle) {
    const Guard guard(lock());
    const auto found = std::find_if(modules.begin(), modules.end(), [&](const auto& m) { return m.get() == reinterpret_cast<Module*>(handle); });
    if (found == modules.end()) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    // Drivers may wait here, but do not promise it.
    if ((*found)->is_needed()) {
        complain("cuModuleUnload: kernels of the module have not run yet, or are in a graph");
        break_context(CUDA_ERROR_LAUNCH_FAILED);
        return sticky_error();
    }
    // Sanitizers may still have to name its lines.
    if (getenv("XATTN_EMULATOR_MODULES") == nullptr) {
        dlclose((*found)->library);
    }
    modules.erase(found);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
    const Guard guard(lock());
    Module* module = module_of(handle);
    if (module == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    std::unique_ptr<Function>& function = module->functions[name];
    if (function == nullptr) {
        const void* kernel = own_symbol(module->library, name);
        if (kernel == nullptr) {
            module->functions.erase(name);
            return CUDA_ERROR_NOT_FOUND;
        }
        function = std::make_unique<Function>(Function{static_cast<const Kernel*>(kernel), name, 49152, {}});
    }
    *out = reinterpret_cast<CUfunction>(function.get());
    return sticky_error();
}

CUDA_API CUresult cuFuncGetAttribute(int* value, int attribute, CUfunction handle) {
    const Guard guard(lock());
    const Function* function = function_of(handle);
    if (function == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    switch (attribute) {
    case 0: *value = static_cast<int>(function->kernel->threads); break;
    case 5:
    case 6: *value = architecture(); break;
    case 8: *value = function->dynamic_shared; break;
    // Static shared and constant memory, spills, registers: the compiler of a device would know.
    default: *value = 0; break;
    }
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
    const Guard guard(lock());
    Function* function = function_of(handle);
    if (function == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    // 9: the share of shared memory in the cache, a hint.
    if (attribute == 9) {
        return CUDA_SUCCESS;
    }
    if (attribute != 8 || value < 0 || value > shared_limit()) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    function->dynamic_shared = value;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuFuncSetCacheConfig(CUfunction, int) {
    return CUDA_SUCCESS;
}

static CUresult launch_kernel(const char* call, CUfunction handle, const CUlaunchConfig& config, void** parameters, void** extra) {
    counted(call);
    if (!context_is_current()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    const Guard guard(lock());
    Function* function = function_of(handle);
    if (function == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const Kernel& kernel = *function->kernel;
    const auto [grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, attributes, attribute_count] = config;
    const bool grid_fits = grid_x > 0 && grid_y > 0 && grid_z > 0 && grid_x <= 0x7fffffff && grid_y <= 65535 && grid_z <= 65535;
    const bool block_fits = block_x > 0 && block_y > 0 && block_z > 0 && block_x <= 1024 && block_y <= 1024 && block_z <= 64 &&
                            block_x * block_y * block_z <= kernel.threads && kernel.threads <= 1024;
    if (!grid_fits || !block_fits || static_cast<int>(shared_bytes) > function->dynamic_shared || parameters == nullptr || extra != nullptr) {
        complain("%s %s: grid (%u, %u, %u), block (%u, %u, %u) of at most %u threads, %u bytes of shared memory of at most %d",
                 call, function->name.c_str(), grid_x, grid_y, grid_z, block_x, block_y, block_z, kernel.threads, shared_bytes,
                 function->dynamic_shared);
        return CUDA_ERROR_INVALID_VALUE;
    }
    // Programmatic dependent launch: kernels run one after the other here, so that it changes
    // nothing but the count.
    for (unsigned n = 0; n < attribute_count; n++) {
        if (attributes[n].id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION || attributes[n].flag != 1 || architecture() < 90) {
            complain("%s %s: attribute %d with the value %d on sm_%d", call, function->name.c_str(), attributes[n].id, attributes[n].flag,
                     architecture());
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        counted("dependent launches");
    }
    const auto what = std::make_shared<Launch>();
    what->kernel = &kernel;
    what->name = function->name;
    what->grid = {grid_x, grid_y, grid_z};
    what->block = {block_x, block_y, block_z};
    what->shared_bytes = shared_bytes;
    const auto bytes_of = [](const void* start, size_t bytes) {
        std::vector<Parameters> copy((bytes + sizeof(Parameters) - 1) / sizeof(Parameters));
        memcpy(copy.data(), start, bytes);
        return copy;
    };
    what->params = bytes_of(parameters[0], kernel.params_size);
    what->operands = bytes_of(parameters[1], kernel.operands_size);
    if (kernel.maps_size > 0) {
        what->maps = bytes_of(parameters[2], kernel.maps_size);
    }
    auto& launches = function->launches;
    launches.erase(std::remove_if(launches.begin(), launches.end(), [](const auto& launch) { return launch.expired(); }), launches.end());
    launches.push_back(what);
    return enqueue(stream, [what] { execute(*what); });
}

CUDA_API CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                                 unsigned block_z, unsigned shared_bytes, CUstream stream, void** parameters, void** extra) {
    return launch_kernel(__func__, handle, {grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, nullptr, 0}, parameters, extra);
}

CUDA_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** parameters, void** extra) {
    return config == nullptr ? CUDA_ERROR_INVALID_VALUE : launch_kernel(__func__, handle, *config, parameters, extra);
}

// Registers are not known here, so that it can only say what threads and shared memory allow.
CUDA_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int threads, size_t shared_bytes) {
    int value = 0;
    cuDeviceGetAttribute(&value, 39, 0);
    const int by_threads = value / std::max(threads, 1);
    cuDeviceGetAttribute(&value, 81, 0);
    const int by_shared = value / static_cast<int>(shared_bytes + 1024);
    cuDeviceGetAttribute(&value, 106, 0);
    *blocks = std::min({by_threads, by_shared, value});
    return CUDA_SUCCESS;
}
