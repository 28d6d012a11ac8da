// The stand-in for NVRTC: "compiles" a kernel text for sm_XX by running g++. What it calls CUBIN is
// a shared object that only libcuda's stand-in loads. The command stands in the file `compiler`
// beside this library, one word a line, as scripts/emulated-cuda wrote it.

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cuda_api.h"

extern char** environ;

namespace {

enum Result : int {
    SUCCESS = 0,
    OUT_OF_MEMORY = 1,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
    INTERNAL_ERROR = 11,
};

struct Program {
    std::string source, log, image;
};

constexpr int ARCHITECTURES[] = {80, 86, 87, 89, 90, 100, 120};

bool starts_with(const std::string& text, const char* prefix) {
    return text.compare(0, strlen(prefix), prefix) == 0;
}

std::string folder() {
    Dl_info info;
    dladdr(reinterpret_cast<const void*>(&folder), &info);
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string> lines(const std::string& text) {
    std::vector<std::string> found;
    size_t start = 0;
    while (start < text.size()) {
        const size_t end = std::min(text.find('\n', start), text.size());
        if (end > start) {
            found.push_back(text.substr(start, end - start));
        }
        start = end + 1;
    }
    return found;
}

// sm_90a -> 90; 0 for what this compiler does not know.
int architecture(const std::string& name) {
    const size_t digits = name.find_first_of("0123456789");
    const int number = digits == std::string::npos ? 0 : atoi(name.c_str() + digits);
    for (const int known : ARCHITECTURES) {
        if (known == number) {
            return number;
        }
    }
    return 0;
}

// Runs a command with its output in a file, and says how it ended: nothing where it succeeded. A
// preloaded sanitizer is not for the compiler.
std::string run(const std::vector<std::string>& command, const std::string& output) {
    std::vector<char*> arguments;
    for (const std::string& word : command) {
        arguments.push_back(const_cast<char*>(word.c_str()));
    }
    arguments.push_back(nullptr);
    std::vector<char*> environment;
    for (char** variable = environ; *variable != nullptr; variable++) {
        if (!starts_with(*variable, "LD_PRELOAD=") && !starts_with(*variable, "LD_LIBRARY_PATH=")) {
            environment.push_back(*variable);
        }
    }
    environment.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child = 0;
    const int failure = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    if (failure != 0) {
        return std::string("cannot be started: ") + strerror(failure);
    }
    int status = 0;
    pid_t ended = 0;
    do {
        ended = waitpid(child, &status, 0);
    } while (ended < 0 && errno == EINTR);
    if (ended != child) {
        return std::string("cannot be waited for: ") + strerror(errno);
    }
    if (WIFSIGNALED(status)) {
        return "ended by signal " + std::to_string(WTERMSIG(status));
    }
    return WEXITSTATUS(status) == 0 ? "" : "ended with exit status " + std::to_string(WEXITSTATUS(status));
}

// Every option that means something here, or that may be given and means nothing. 0: not this
// compiler's.
int check_options(const char* const* options, int count, int& arch, std::string& log) {
    static const char* const accepted[] = {"--std=c++17", "-std=c++17", "-lineinfo", "--generate-line-info", "--fmad=true", "--ptxas-options=",
                                           "-default-device", "--restrict"};
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        if (starts_with(option, "--gpu-architecture=") || starts_with(option, "-arch=")) {
            arch = architecture(option.substr(option.find('=') + 1));
            if (arch == 0) {
                log = "nvrtc: error: invalid value for --gpu-architecture (-arch): " + option + "\n";
                return 0;
            }
            continue;
        }
        bool known = false;
        for (const char* one : accepted) {
            known |= starts_with(option, one);
        }
        if (!known) {
            log = "nvrtc: error: unrecognized option " + option + " found\n";
            return 0;
        }
    }
    return 1;
}

Result compile(Program& program, int arch) {
    const char* temporary = getenv("TMPDIR");
    std::string directory = std::string(temporary != nullptr ? temporary : "/tmp") + "/xattn-nvrtc-XXXXXX";
    if (mkdtemp(directory.data()) == nullptr) {
        program.log = "emulated nvrtc: cannot make a folder in " + directory;
        return INTERNAL_ERROR;
    }
    const std::string text = directory + "/kernel.cu", image = directory + "/kernel.so", output = directory + "/log";
    std::ofstream(text, std::ios::binary) << program.source;
    std::vector<std::string> command = lines(read(folder() + "/compiler"));
    if (command.empty()) {
        program.log = "emulated nvrtc: no file `compiler` in " + folder() + "; scripts/emulated-cuda writes it";
        return INTERNAL_ERROR;
    }
    command.push_back("-DXATTN_EMULATED_ARCHITECTURE=" + std::to_string(arch));
    for (const char* word : {"-x", "c++"}) {
        command.push_back(word);
    }
    command.push_back(text);
    for (const std::string& word : {std::string("-x"), std::string("none"), folder() + "/libcuda.so.1", std::string("-o"), image}) {
        command.push_back(word);
    }
    const std::string failure = run(command, output);
    const bool compiled = failure.empty();
    program.log = read(output) + (compiled ? "" : command[0] + " " + failure + "\n");
    program.image = compiled ? read(image) : "";
    for (const std::string& file : {text, image, output}) {
        unlink(file.c_str());
    }
    rmdir(directory.c_str());
    return compiled ? SUCCESS : COMPILATION;
}

} // namespace

CUDA_API int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

CUDA_API int nvrtcGetNumSupportedArchs(int* count) {
    *count = static_cast<int>(std::size(ARCHITECTURES));
    return SUCCESS;
}

CUDA_API int nvrtcGetSupportedArchs(int* archs) {
    memcpy(archs, ARCHITECTURES, sizeof ARCHITECTURES);
    return SUCCESS;
}

CUDA_API int nvrtcCreateProgram(Program** program, const char* source, const char*, int headers, const char* const*, const char* const*) {
    if (program == nullptr || source == nullptr || headers != 0) {
        return INVALID_INPUT;
    }
    *program = new Program{source, "", ""};
    return SUCCESS;
}

CUDA_API int nvrtcDestroyProgram(Program** program) {
    if (program == nullptr || *program == nullptr) {
        return INVALID_PROGRAM;
    }
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

CUDA_API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    if (program == nullptr) {
        return INVALID_PROGRAM;
    }
    int arch = 75;
    if (check_options(options, count, arch, program->log) == 0) {
        return INVALID_OPTION;
    }
    return compile(*program, arch);
}

CUDA_API int nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    if (program == nullptr) {
        return INVALID_PROGRAM;
    }
    *bytes = program->log.size() + 1;
    return SUCCESS;
}

CUDA_API int nvrtcGetProgramLog(Program* program, char* log) {
    if (program == nullptr) {
        return INVALID_PROGRAM;
    }
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

CUDA_API int nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    if (program == nullptr || program->image.empty()) {
        return INVALID_PROGRAM;
    }
    *bytes = program->image.size();
    return SUCCESS;
}

CUDA_API int nvrtcGetCUBIN(Program* program, char* image) {
    if (program == nullptr || program->image.empty()) {
        return INVALID_PROGRAM;
    }
    memcpy(image, program->image.data(), program->image.size());
    return SUCCESS;
}

// PTX is not made here.
CUDA_API int nvrtcGetPTXSize(Program*, size_t*) {
    return INVALID_PROGRAM;
}
CUDA_API int nvrtcGetPTX(Program*, char*) {
    return INVALID_PROGRAM;
}

CUDA_API const char* nvrtcGetErrorString(int result) {
    switch (result) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case OUT_OF_MEMORY: return "NVRTC_ERROR_OUT_OF_MEMORY";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
    case INTERNAL_ERROR: return "NVRTC_ERROR_INTERNAL_ERROR";
    default: return "NVRTC_ERROR unknown";
    }
}
