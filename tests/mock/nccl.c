// NCCL on the memory of the mocked driver: ranks exchange files in a folder named by the unique id. Calls are logged as the
// driver's are. MOCK_NCCL selects the behavior:
//
//   (not set)     well
//   slow          joining and all-reduces are in progress for a while
//   never-joins   joining is in progress forever
//   refuses       joining is invalid usage
//   loses-peer    the first all-reduce never completes, and after a while there is an asynchronous error
//   hangs         the first all-reduce never completes
//   stuck         the first all-reduce never returns
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { SUM = 0, MAX = 2, AVG = 4 };
enum { FLOAT32 = 7 };

struct id { char folder[128]; };
struct config { size_t size; unsigned magic, version; int blocking; };
struct comm { int rank, ranks, polls, operations, gone; struct id id; };

static void (*note)(const char *, ...);
static void (*hang)(int);

static int behaves(const char *how) {
    const char *asked = getenv("MOCK_NCCL");
    return asked && !strcmp(asked, how);
}

int ncclGetVersion(int *version) {
    // The driver that the program has loaded, or loads next.
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver) {
        note = (void (*)(const char *, ...))dlsym(driver, "mock_note");
        hang = (void (*)(int))dlsym(driver, "mock_hang");
    }
    *version = 23007;
    return SUCCESS;
}

int ncclGetUniqueId(struct id *id) {
    snprintf(id->folder, sizeof id->folder, "%s.XXXXXX", getenv("MOCK_LOG"));
    note("ncclGetUniqueId");
    return mkdtemp(id->folder) ? SUCCESS : INVALID_USAGE;
}

int ncclCommInitRankConfig(struct comm **comm, int ranks, struct id id, int rank, struct config *config) {
    note("ncclCommInitRankConfig rank %d of %d blocking=%d magic=%x", rank, ranks, config->blocking, config->magic);
    *comm = calloc(1, sizeof **comm);
    **comm = (struct comm){.rank = rank, .ranks = ranks, .id = id};
    if (behaves("refuses")) return INVALID_USAGE;
    return behaves("slow") || behaves("never-joins") ? IN_PROGRESS : SUCCESS;
}

int ncclCommGetAsyncError(struct comm *comm, int *state) {
    if (comm->gone) note("ncclCommGetAsyncError of a communicator that is gone");
    int polls = ++comm->polls;
    *state = SUCCESS;
    if (behaves("never-joins") || (behaves("slow") && polls % 20)) *state = IN_PROGRESS;
    if (behaves("loses-peer") && comm->operations && polls > 20) *state = REMOTE_ERROR;
    return SUCCESS;
}

// A rank's part of an operation, written by the rank and read by all.
static void path_of(const struct comm *comm, int rank, const char *end, char *path) {
    sprintf(path, "%s/%d.%d%s", comm->id.folder, comm->operations, rank, end);
}

static void give(const struct comm *comm, const float *values, size_t count) {
    char draft[256], final[256];
    path_of(comm, comm->rank, ".draft", draft);
    path_of(comm, comm->rank, "", final);
    FILE *file = fopen(draft, "w");
    fwrite(values, sizeof *values, count, file);
    fclose(file);
    rename(draft, final);
}

static void take(const struct comm *comm, int rank, float *values, size_t count) {
    char path[256];
    path_of(comm, rank, "", path);
    FILE *file;
    while (!(file = fopen(path, "r"))) usleep(1000);
    if (fread(values, sizeof *values, count, file) != count) abort();
    fclose(file);
}

int ncclAllReduce(const float *from, float *to, size_t count, int type, int op, struct comm *comm, void *stream) {
    note("ncclAllReduce count=%zu type=%d op=%d", count, type, op);
    if (comm->gone) note("ncclAllReduce of a communicator that is gone");
    comm->operations++;
    while (behaves("stuck")) sleep(1);
    if (behaves("hangs") || behaves("loses-peer")) {
        comm->polls = 0;
        hang(1);
        return SUCCESS;
    }
    if (type == FLOAT32) {
        give(comm, from, count);
        float *other = malloc(count * sizeof *other);
        for (int rank = 0; rank < comm->ranks; rank++) {
            take(comm, rank, other, count);
            for (size_t i = 0; i < count; i++)
                to[i] = rank == 0 ? other[i] : op == MAX ? (to[i] > other[i] ? to[i] : other[i]) : to[i] + other[i];
        }
        for (size_t i = 0; op == AVG && i < count; i++) to[i] /= comm->ranks;
        free(other);
    }
    return behaves("slow") ? IN_PROGRESS : SUCCESS;
}

int ncclCommFinalize(struct comm *comm) {
    note("ncclCommFinalize");
    return behaves("slow") ? IN_PROGRESS : SUCCESS;
}

// Freed communicators stay readable, so that invalid calls can be detected.
int ncclCommDestroy(struct comm *comm) { note("ncclCommDestroy"); comm->gone = 1; return SUCCESS; }

int ncclCommAbort(struct comm *comm) {
    note("ncclCommAbort");
    comm->gone = 1;
    hang(0);
    return SUCCESS;
}

const char *ncclGetErrorString(int result) {
    return result == REMOTE_ERROR ? "remote process exited or there was a network error" : "invalid usage";
}

const char *ncclGetLastError(struct comm *comm) { return "mocked\n"; }
