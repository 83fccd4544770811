// The emulated NVRTC: hands a kernel source to the system's C++ compiler and gives the shared library out as the
// "cubin". What it compiled once it keeps beside itself, by the hash of all that went in. No PTX, no LTO, no name
// expressions: kernels are extern "C".
//
// FLOTILLA_EMULATED_CXX names another compiler than c++.
#include "image.h"
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <spawn.h>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

extern char** environ;

enum nvrtcResult : int {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_OUT_OF_MEMORY = 1,
    NVRTC_ERROR_PROGRAM_CREATION_FAILURE = 2,
    NVRTC_ERROR_INVALID_INPUT = 3,
    NVRTC_ERROR_INVALID_PROGRAM = 4,
    NVRTC_ERROR_INVALID_OPTION = 5,
    NVRTC_ERROR_COMPILATION = 6,
    NVRTC_ERROR_INTERNAL_ERROR = 11,
};

#define NVRTC_API extern "C" __attribute__((visibility("default")))

namespace {

const int ARCHITECTURES[] = {75, 80, 86, 87, 89, 90, 100, 120};

struct File {
    std::string name, text;
};
struct Program {
    File source;
    std::vector<File> headers;
    std::string log, image;
    bool compiled = false;
};

std::string own_folder() {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&own_folder), &self);
    const std::string path = self.dli_fname;
    char* whole = realpath(path.c_str(), nullptr);
    const std::string resolved = whole ? whole : path;
    free(whole);
    return resolved.substr(0, resolved.rfind('/'));
}

std::string compiler() {
    const char* named = getenv("FLOTILLA_EMULATED_CXX");
    return named && *named ? named : "c++";
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}
bool write_file(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    return bool(file.flush());
}

/// A folder of our own for one compilation, removed with all that is in it.
struct Folder {
    std::string path;
    std::vector<std::string> files;
    Folder() {
        const char* temporary = getenv("TMPDIR");
        path = std::string(temporary && *temporary ? temporary : "/tmp") + "/flotilla-emulated-XXXXXX";
        if (!mkdtemp(path.data())) path.clear();
    }
    std::string file(const std::string& name) {
        files.push_back(path + "/" + name);
        return files.back();
    }
    ~Folder() {
        for (const auto& name : files) unlink(name.c_str());
        if (!path.empty()) rmdir(path.c_str());
    }
};

/// Runs a command in a folder, stdout and stderr into a file there. The exit status, or -1 if it could not start.
int run(const std::vector<std::string>& command, const std::string& folder, const std::string& output) {
    std::vector<char*> arguments;
    for (const auto& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
    posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    const int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) return -1;
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

struct Kernel {
    std::string name, threads_max;
};

bool is_word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

/// The kernels of a preprocessed source in which __global__ reads flotilla_global: what stands before the first
/// parenthesis that is not __launch_bounds__'s. Templates are left out.
std::vector<Kernel> find_kernels(const std::string& text) {
    std::vector<Kernel> found;
    const std::string mark = "flotilla_global";
    for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at)) {
        const size_t begin = text.find_last_of(";{}", at);
        const std::string before = text.substr(begin == std::string::npos ? 0 : begin, at - (begin == std::string::npos ? 0 : begin));
        at += mark.size();
        Kernel kernel = {"", "1024"};
        std::string word;
        for (; at < text.size(); at++) {
            const char c = text[at];
            if (is_word(c)) {
                if (at > 0 && !is_word(text[at - 1])) word.clear();
                word += c;
            } else if (c == '#' && (at == 0 || text[at - 1] == '\n')) {
                at = text.find('\n', at); // a line marker
            } else if (c == '(' && word == "__launch_bounds__") {
                int depth = 1;
                const size_t from = ++at;
                size_t first_end = 0;
                for (; depth > 0 && at < text.size(); at++) {
                    if (text[at] == '(') depth++;
                    if (text[at] == ')') depth--;
                    if (text[at] == ',' && depth == 1 && first_end == 0) first_end = at;
                }
                at--;
                kernel.threads_max = text.substr(from, (first_end ? first_end : at) - from);
                word.clear();
            } else if (c == '(') {
                kernel.name = word;
                break;
            }
        }
        bool known = kernel.name.empty() || before.find("template") != std::string::npos;
        for (const auto& other : found) known = known || other.name == kernel.name;
        if (!known) found.push_back(kernel);
    }
    return found;
}

std::string table_of(const std::vector<Kernel>& kernels) {
    std::string text = "static const flotilla_emulated::KernelEntry flotilla_emulated_kernels[] = {\n";
    for (const auto& kernel : kernels)
        text += "    flotilla_emulated::Call<&" + kernel.name + ">::entry(\"" + kernel.name + "\", unsigned(" + kernel.threads_max + ")),\n";
    text += "    {nullptr, nullptr, nullptr, 0, 0}};\n"
            "extern \"C\" __attribute__((visibility(\"default\"))) const flotilla_emulated::ModuleTable flotilla_emulated_module = {\n"
            "    flotilla_emulated_kernels, " + std::to_string(kernels.size()) +
            ", &flotilla_emulated::run_launch, &flotilla_emulated_fault};\n";
    return text;
}

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

/// What of NVRTC's options concerns a CPU.
bool read_options(int count, const char* const* options, std::vector<std::string>& defines, int& architecture, std::string& log) {
    static const char* const IGNORED[] = {"-I", "--include-path", "-std", "--std", "-fmad", "--fmad", "-lineinfo", "--generate-line-info", "-G",
        "--device-debug", "-default-device", "--device-as-default-execution-space", "-w", "--disable-warnings", "-maxrregcount", "--maxrregcount",
        "-ftz", "--ftz", "-prec-sqrt", "--prec-sqrt", "-prec-div", "--prec-div", "--restrict", "-restrict", "-dopt", "--dopt", "--ptxas-options",
        "-Xptxas", "--extra-device-vectorization", "-extra-device-vectorization", "--split-compile", "-pch", "--pch", "--diag-suppress", "--use_fast_math", "-use_fast_math"};
    architecture = 75; // NVRTC's own default is older or newer by version; nobody should rely on it
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        const auto value = option.substr(option.find('=') == std::string::npos ? option.size() : option.find('=') + 1);
        if (option == "-D" && i + 1 < count) {
            defines.push_back(std::string("-D") + options[++i]);
        } else if (starts_with(option, "-D")) {
            defines.push_back(option);
        } else if (starts_with(option, "--define-macro=")) {
            defines.push_back("-D" + value);
        } else if (starts_with(option, "--gpu-architecture=") || starts_with(option, "-arch=")) {
            architecture = 0;
            for (int known : ARCHITECTURES)
                if (value == "sm_" + std::to_string(known) || value == "sm_" + std::to_string(known) + "a") architecture = known;
            if (architecture == 0) {
                log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
                return false;
            }
        } else {
            bool known = false;
            for (const char* ignored : IGNORED) known = known || starts_with(option, ignored);
            if (!known) {
                log = "nvrtc: error: unrecognized option " + option + " found\n";
                return false;
            }
        }
    }
    return true;
}

std::vector<std::string> code_flags() {
    std::vector<std::string> flags = {"-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fno-gnu-unique", "-fno-exceptions",
                                      "-fno-rtti", "-fno-stack-protector", "-fvisibility=hidden", "-fPIC",
                                      // Misaligned vectors and indices past an array: reported with their line (see faults.h).
                                      "-fsanitize=alignment,bounds", "-fno-sanitize-recover=all"};
#if defined(__x86_64__)
    flags.push_back("-fcf-protection=none");
    // The same bits with and without: only faster.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) flags.insert(flags.end(), {"-mavx2", "-mfma"});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) flags.push_back("-mf16c");
#endif
    return flags;
}

nvrtcResult compile(Program& program, int option_count, const char* const* options) {
    std::vector<std::string> defines;
    int architecture;
    if (!read_options(option_count, options, defines, architecture, program.log)) return NVRTC_ERROR_INVALID_OPTION;

    const std::string home = own_folder();
    Folder folder;
    if (folder.path.empty()) {
        program.log = "emulated nvrtc: no temporary folder\n";
        return NVRTC_ERROR_INTERNAL_ERROR;
    }
    bool written = write_file(folder.file(program.source.name), program.source.text);
    for (const auto& header : program.headers) written = written && write_file(folder.file(header.name), header.text);

    std::vector<std::string> common = {compiler(), "-std=gnu++17", "-x", "c++", "-I.", "-w", "-D__CUDACC_RTC__=1", "-D__CUDACC__=1",
                                       "-D__CUDA_ARCH__=" + std::to_string(architecture * 10)};
    common.insert(common.end(), defines.begin(), defines.end());

    // Once through the preprocessor alone: which kernels there are is seen there, and the hash is over all of it.
    auto preprocess = common;
    for (const char* word : {"-E", "-DFLOTILLA_EMULATED=1", "-D__global__=flotilla_global"}) preprocess.push_back(word);
    preprocess.push_back(program.source.name);
    const std::string preprocessed_path = folder.file("preprocessed"), log_path = folder.file("log");
    preprocess.insert(preprocess.end(), {"-o", "preprocessed"});
    int status = written ? run(preprocess, folder.path, log_path) : -1;
    program.log = read_file(log_path);
    if (status != 0) {
        if (status == -1 || status == 127) program.log += "emulated nvrtc: the C++ compiler " + compiler() + " does not start\n";
        return NVRTC_ERROR_COMPILATION;
    }
    const std::string preprocessed = read_file(preprocessed_path);

    const std::vector<std::string> flags = code_flags();
    std::vector<std::string> build = common;
    build.insert(build.end(), flags.begin(), flags.end());
    uint64_t hash = checksum(preprocessed.data(), preprocessed.size());
    for (const auto& word : build) hash = checksum(word.c_str(), word.size() + 1, hash);
    char name[32];
    snprintf(name, sizeof name, "%016llx.so", static_cast<unsigned long long>(hash));
    const std::string kept = home + "/kernels/" + name;
    std::string library = read_file(kept);
    Trailer trailer = {};
    const bool known = library.size() > sizeof trailer &&
                       (memcpy(&trailer, library.data() + library.size() - sizeof trailer, sizeof trailer), trailer.magic == Trailer::MAGIC) &&
                       trailer.checksum == checksum(library.data(), library.size() - sizeof trailer);
    if (known) {
        program.image = library;
        return NVRTC_SUCCESS;
    }

    write_file(folder.file("kernels.cpp"), "#include \"" + program.source.name + "\"\n#line 1 \"kernel table\"\n" + table_of(find_kernels(preprocessed)));
    const std::string library_path = folder.file("kernels.so");
    folder.file("kernels.o");
    build.insert(build.end(), {"-include", home + "/card/cuda_on_cpu.h", "-c", "kernels.cpp", "-o", "kernels.o"});
    status = run(build, folder.path, log_path);
    // Linked apart: the sanitizers' own library is not wanted.
    if (status == 0) status = run({compiler(), "-shared", "kernels.o", "-o", "kernels.so"}, folder.path, log_path);
    program.log = read_file(log_path);
    if (status != 0) return NVRTC_ERROR_COMPILATION;
    library = read_file(library_path);
    trailer = {Trailer::MAGIC, checksum(library.data(), library.size()), architecture, 0};
    library.append(reinterpret_cast<const char*>(&trailer), sizeof trailer);

    mkdir((home + "/kernels").c_str(), 0777);
    const std::string fresh = kept + "." + std::to_string(getpid()) + "." + folder.path.substr(folder.path.size() - 6);
    if (!write_file(fresh, library) || rename(fresh.c_str(), kept.c_str()) != 0) unlink(fresh.c_str());
    program.image = library;
    return NVRTC_SUCCESS;
}

} // namespace

NVRTC_API nvrtcResult nvrtcVersion(int* major, int* minor) {
    *major = 12;
    *minor = 8;
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcGetNumSupportedArchs(int* count) {
    *count = int(sizeof ARCHITECTURES / sizeof *ARCHITECTURES);
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcGetSupportedArchs(int* architectures) {
    memcpy(architectures, ARCHITECTURES, sizeof ARCHITECTURES);
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcCreateProgram(Program** program, const char* source, const char* name, int header_count, const char* const* headers,
                                         const char* const* header_names) {
    if (!program || !source || header_count < 0) return NVRTC_ERROR_INVALID_INPUT;
    *program = new Program;
    std::string base = name && *name ? name : "default_program";
    base = base.substr(base.rfind('/') == std::string::npos ? 0 : base.rfind('/') + 1);
    (*program)->source = {base, source};
    for (int i = 0; i < header_count; i++) (*program)->headers.push_back({header_names[i], headers[i]});
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return NVRTC_ERROR_INVALID_PROGRAM;
    delete *program; // the caller's handle may be a temporary: it is not cleared
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcCompileProgram(Program* program, int option_count, const char* const* options) {
    if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
    program->log.clear();
    const nvrtcResult result = compile(*program, option_count, options);
    program->compiled = result == NVRTC_SUCCESS;
    return result;
}
NVRTC_API nvrtcResult nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
    *bytes = program->log.size() + 1;
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcGetProgramLog(Program* program, char* log) {
    if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    if (!program || !program->compiled) return NVRTC_ERROR_INVALID_PROGRAM;
    *bytes = program->image.size();
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcGetCUBIN(Program* program, char* image) {
    if (!program || !program->compiled) return NVRTC_ERROR_INVALID_PROGRAM;
    memcpy(image, program->image.data(), program->image.size());
    return NVRTC_SUCCESS;
}
NVRTC_API nvrtcResult nvrtcGetPTXSize(Program*, size_t*) { return NVRTC_ERROR_INVALID_PROGRAM; }
NVRTC_API nvrtcResult nvrtcGetPTX(Program*, char*) { return NVRTC_ERROR_INVALID_PROGRAM; }
NVRTC_API const char* nvrtcGetErrorString(nvrtcResult result) {
    switch (result) {
    case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
    case NVRTC_ERROR_OUT_OF_MEMORY: return "NVRTC_ERROR_OUT_OF_MEMORY";
    case NVRTC_ERROR_PROGRAM_CREATION_FAILURE: return "NVRTC_ERROR_PROGRAM_CREATION_FAILURE";
    case NVRTC_ERROR_INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case NVRTC_ERROR_INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case NVRTC_ERROR_INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
    case NVRTC_ERROR_INTERNAL_ERROR: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
    return "NVRTC_ERROR unknown";
}
