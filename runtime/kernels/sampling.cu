// Farthest point sampling and grouping, index-identical to crossmost.runtime.sampling.
//
// Every squared distance is rounded after each operation and summed x, y, z in this order: the `_rn` intrinsics are
// never contracted to a fused multiply-add. Distances are not negative, so that their bits order like the numbers; a
// key holds the distance's bits above the index, which makes keys unique and decides ties by the index.
//
// Clouds are rows of (B, N, C) float32, C = 3 or 6; `sizes` (B,) int32 says how many points of each row are real and
// may be null. A size outside 1..N is brought into it, so that no size leads outside the row.
// Arguments come in one order: inputs, int32 scalars, outputs.
//
// crossmost.export.ptx compiles this file to the PTX beside it, which is what ships.

typedef unsigned long long Key;

#define INLINE __device__ __forceinline__
#define ALL_LANES 0xffffffffu

enum { WARP = 32 };  // enums, because NVRTC gives a global constant an address in the module

INLINE int size_of(const int* sizes, int cloud, int most) {
    return sizes == nullptr ? most : max(1, min(sizes[cloud], most));
}

INLINE float squared_distance(float x, float y, float z, float cx, float cy, float cz) {
    const float dx = __fsub_rn(x, cx), dy = __fsub_rn(y, cy), dz = __fsub_rn(z, cz);
    return __fadd_rn(__fadd_rn(__fmul_rn(dx, dx), __fmul_rn(dy, dy)), __fmul_rn(dz, dz));
}

// ---------------------------------------------------------------------------------------------------------------
// Farthest point sampling: one block a cloud. The steps depend on each other, so that the time of one step counts:
// the thread's own points lie in registers, there is one barrier a step, and the block is small, because the warp
// reductions of every further warp queue for the same unit while the arithmetic has enough independent work anyway.

enum { SAMPLING_THREADS = 256, STREAMING_THREADS = 1024, INFINITE_BITS = 0x7f800000 };

// A thread's farthest point so far. Points are offered in the order of their index and only a farther one takes the
// place: ties stay with the lowest index. The distance -1 stands for "no point here" and loses to every real one.
struct Farthest {
    float distance = -1.0f;
    int index = 0;

    INLINE void offer(float candidate, int at) {
        if (candidate > distance) {
            distance = candidate;
            index = at;
        }
    }

    // Signed, for the sake of the distance -1; the complement of the index lets the lowest index win a maximum.
    INLINE long long key() const {
        return (static_cast<long long>(__float_as_int(distance)) << 32) | static_cast<unsigned>(~index);
    }
};

// The largest key of each `LANES` neighboring lanes (of the whole warp where the hardware reduces whole warps only:
// every caller holds the same keys in each such part).
template <int LANES>
INLINE long long largest(long long key) {
#if __CUDA_ARCH__ >= 800
    const int high = static_cast<int>(key >> 32);
    const int best = __reduce_max_sync(ALL_LANES, high);
    const unsigned low = __reduce_max_sync(ALL_LANES, high == best ? static_cast<unsigned>(key) : 0u);
    return (static_cast<long long>(best) << 32) | low;
#else
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) key = max(key, __shfl_xor_sync(ALL_LANES, key, offset));
    return key;
#endif
}

// The index of the block's farthest point, in every thread. Consecutive steps must pass different `slots`: with two
// in turn, the barrier of a step also separates the reads of the step before from the writes of the step after.
template <int THREADS>
INLINE int farthest_of_block(const Farthest& mine, long long* slots) {
    constexpr int WARPS = THREADS / WARP;
    const int lane = threadIdx.x % WARP;
    const long long of_warp = largest<WARP>(mine.key());
    if (lane == 0) slots[threadIdx.x / WARP] = of_warp;
    __syncthreads();
    return ~static_cast<int>(largest<WARPS>(slots[lane % WARPS]));
}

// Write step `step` of the cloud and return the center.
INLINE float3 choose(const float* points, int channels, int index, int step, int* indices, float* centers) {
    const float* chosen = points + static_cast<long long>(index) * channels;
    const float3 center = make_float3(chosen[0], chosen[1], chosen[2]);
    if (threadIdx.x == 0) {
        if (indices != nullptr) indices[step] = index;
        centers[3 * step] = center.x;
        centers[3 * step + 1] = center.y;
        centers[3 * step + 2] = center.z;
    }
    return center;
}

// Point i belongs to thread i % 256, in its slot i / 256. All 64 slots of the largest instance would fill the
// registers to the last one: the z of most of its slots lie in shared memory.
template <int SLOTS>
INLINE void sample_in_registers(const float* points, const int* sizes, int most, int channels, int groups,
                                int* indices, float* centers) {
    constexpr int HELD = SLOTS < 64 ? SLOTS : 24;
    __shared__ long long keys[2][SAMPLING_THREADS / WARP];
    __shared__ float later_z[SLOTS > HELD ? SLOTS - HELD : 1][SAMPLING_THREADS];
    float x[SLOTS], y[SLOTS], z[HELD], nearest[SLOTS];

    const int cloud = blockIdx.x, thread = threadIdx.x;
    const int size = size_of(sizes, cloud, most);
    points += static_cast<long long>(cloud) * most * channels;
    centers += static_cast<long long>(cloud) * groups * 3;
    if (indices != nullptr) indices += static_cast<long long>(cloud) * groups;

#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int index = slot * SAMPLING_THREADS + thread;
        const float* point = points + static_cast<unsigned>(min(index, size - 1) * channels);
        x[slot] = point[0];
        y[slot] = point[1];
        const float pz = point[2];
        if (slot < HELD) z[slot % HELD] = pz;
        else later_z[slot - HELD][thread] = pz;
        nearest[slot] = index < size ? __int_as_float(INFINITE_BITS) : -1.0f;
    }
    // The first one to be chosen is the farthest from the origin, which is not a chosen point itself.
    Farthest mine;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const float pz = slot < HELD ? z[slot % HELD] : later_z[slot - HELD][thread];
        mine.offer(fminf(nearest[slot], squared_distance(x[slot], y[slot], pz, 0.0f, 0.0f, 0.0f)), slot);
    }
    for (int step = 0;; ++step) {
        mine.index = mine.index * SAMPLING_THREADS + thread;
        const int index = farthest_of_block<SAMPLING_THREADS>(mine, keys[step % 2]);
        const float3 center = choose(points, channels, index, step, indices, centers);
        if (step + 1 >= groups) return;
        mine = Farthest();
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            const float pz = slot < HELD ? z[slot % HELD] : later_z[slot - HELD][thread];
            const float distance = squared_distance(x[slot], y[slot], pz, center.x, center.y, center.z);
            nearest[slot] = fminf(nearest[slot], distance);
            mine.offer(nearest[slot], slot);
        }
    }
}

#define SAMPLE_IN_REGISTERS(SLOTS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(SAMPLING_THREADS) farthest_points_##SLOTS(                          \
        const float* __restrict__ points, const int* __restrict__ sizes, int most, int channels, int groups,         \
        int* __restrict__ indices, float* __restrict__ centers) {                                                    \
        sample_in_registers<SLOTS>(points, sizes, most, channels, groups, indices, centers);                         \
    }

SAMPLE_IN_REGISTERS(4)   // up to 1024 points
SAMPLE_IN_REGISTERS(8)   // up to 2048
SAMPLE_IN_REGISTERS(16)  // up to 4096
SAMPLE_IN_REGISTERS(32)  // up to 8192
SAMPLE_IN_REGISTERS(64)  // up to 16384

// Clouds of any size: the points are read again in every step, and each one's distance to the nearest chosen point
// lies in `nearest` (B, N), a workspace that needs no initial value. A thread reads only what it wrote itself.
extern "C" __global__ void __launch_bounds__(STREAMING_THREADS)
    farthest_points_streamed(const float* __restrict__ points, const int* __restrict__ sizes, int most, int channels,
                             int groups, int* __restrict__ indices, float* __restrict__ centers,
                             float* __restrict__ nearest) {
    __shared__ long long keys[2][STREAMING_THREADS / WARP];
    const int cloud = blockIdx.x;
    const int size = size_of(sizes, cloud, most);
    points += static_cast<long long>(cloud) * most * channels;
    nearest += static_cast<long long>(cloud) * most;
    centers += static_cast<long long>(cloud) * groups * 3;
    if (indices != nullptr) indices += static_cast<long long>(cloud) * groups;

    float3 center = make_float3(0.0f, 0.0f, 0.0f);
    for (int step = -1;; ++step) {  // the step before the first one looks for the point farthest from the origin
        Farthest mine;
        for (int index = threadIdx.x; index < size; index += STREAMING_THREADS) {
            const float* point = points + static_cast<long long>(index) * channels;
            float distance = squared_distance(point[0], point[1], point[2], center.x, center.y, center.z);
            if (step > 0) distance = fminf(nearest[index], distance);
            if (step >= 0) nearest[index] = distance;
            mine.offer(distance, index);
        }
        const int index = farthest_of_block<STREAMING_THREADS>(mine, keys[(step + 1) % 2]);
        center = choose(points, channels, index, step + 1, indices, centers);
        if (step + 2 >= groups) return;
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Grouping: one warp a center, four centers a block. The warp walks over the cloud, 32 points at a time; there is no
// bound on N. The first K points in a ball are the first K that the walk meets there.
//
// For the K nearest the warp keeps the nearest 32 (or 64) so far as a sorted list, one (or two) keys a lane. A point
// nearer than the K-th of the list joins a queue; 32 queued keys are sorted by a bitonic network and merged into the
// list, whose K-th distance is the new limit. The limit is seldom beaten after the first few hundred points, so that
// the walk is mostly arithmetic. Exact: points come in the order of their index, so that one as far as the K-th of
// the list loses the tie to K points of lower index, and an outdated limit is too large, which costs time only.

enum {
    GROUPING_WARPS = 4,
    GROUPING_THREADS = GROUPING_WARPS * WARP,
    TILE = 1024,                 // points in shared memory at a time
    AHEAD = 4,                   // points a lane looks at before the warp asks whether any is near enough
    QUEUE = (AHEAD + 1) * WARP,  // fewer than 32 keys wait while these join
    MOST_IN_BALL = 256,
};
#define NOTHING (~0ull)  // above every key

INLINE Key exchange(Key key, int stride, bool keep_smaller) {
    const Key other = __shfl_xor_sync(ALL_LANES, key, stride);
    return (key < other) == keep_smaller ? key : other;
}

// Sort 32 keys, one a lane, the largest first.
INLINE Key sort_descending(Key key, int lane) {
#pragma unroll
    for (int length = 2; length <= WARP; length *= 2) {
#pragma unroll
        for (int stride = length / 2; stride > 0; stride /= 2)
            key = exchange(key, stride, ((lane & length) == 0) == ((lane & stride) != 0));
    }
    return key;
}

// Sort a bitonic sequence of 32 keys, the smallest first.
INLINE Key merge_ascending(Key key, int lane) {
#pragma unroll
    for (int stride = WARP / 2; stride > 0; stride /= 2) key = exchange(key, stride, (lane & stride) == 0);
    return key;
}

// The 32 * LISTS smallest keys so far, ascending: rank r is in lane r % 32 of list r / 32.
template <int LISTS>
struct Nearest {
    Key keys[LISTS];

    // The smaller ones of an ascending and a descending sequence, place by place, are the 32 smallest of both, in
    // bitonic order.
    INLINE void insert(Key unsorted, int lane) {
        const Key last = min(keys[LISTS - 1], sort_descending(unsorted, lane));
        keys[LISTS - 1] = merge_ascending(last, lane);
        if (LISTS == 1) return;
        const Key first = keys[0];
        const Key reversed = __shfl_xor_sync(ALL_LANES, keys[LISTS - 1], WARP - 1);
        keys[0] = merge_ascending(min(first, reversed), lane);
        keys[LISTS - 1] = merge_ascending(max(first, reversed), lane);
    }

    // The distance's bits of the key of this rank, in every lane.
    INLINE unsigned distance_at(int rank) const {
        const Key key = LISTS == 1 || rank < WARP ? keys[0] : keys[LISTS - 1];
        return __shfl_sync(ALL_LANES, static_cast<unsigned>(key >> 32), rank % WARP);
    }
};

INLINE void load_tile(float (*tile)[TILE], const float* points, int channels, int first, int size) {
    __syncthreads();  // the tile before has been read
    for (int slot = threadIdx.x; slot < TILE && first + slot < size; slot += GROUPING_THREADS) {
        const float* point = points + static_cast<long long>(first + slot) * channels;
        for (int axis = 0; axis < 3; ++axis) tile[axis][slot] = point[axis];
    }
    __syncthreads();
}

// The K nearest points of a center in the warp's queue, as keys, the nearest first.
template <int LISTS>
INLINE void find_nearest(const float* points, int channels, int size, float3 center, int neighbors, Key* queue) {
    __shared__ float tile[3][TILE];
    const int lane = threadIdx.x % WARP;
    Nearest<LISTS> list;
#pragma unroll
    for (int part = 0; part < LISTS; ++part) list.keys[part] = NOTHING;
    int queued = 0;
    unsigned limit = ALL_LANES;  // above the bits of every distance

    for (int first = 0; first < size; first += TILE) {
        load_tile(tile, points, channels, first, size);
        for (int start = lane; start - lane < min(TILE, size - first); start += AHEAD * WARP) {
            unsigned distance[AHEAD];
            unsigned least = ALL_LANES;
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ++ahead) {
                const int slot = start + ahead * WARP;
                const float squared =
                    squared_distance(tile[0][slot], tile[1][slot], tile[2][slot], center.x, center.y, center.z);
                distance[ahead] = first + slot < size ? __float_as_uint(squared) : ALL_LANES;
                least = min(least, distance[ahead]);
            }
            if (!__any_sync(ALL_LANES, least < limit)) continue;
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ++ahead) {
                const unsigned joining = __ballot_sync(ALL_LANES, distance[ahead] < limit);
                if (distance[ahead] < limit) {
                    const unsigned index = first + start + ahead * WARP;
                    const int place = queued + __popc(joining & ((1u << lane) - 1));
                    queue[place] = (static_cast<Key>(distance[ahead]) << 32) | index;
                }
                queued += __popc(joining);
            }
            __syncwarp();
            while (queued >= WARP) {
                queued -= WARP;
                list.insert(queue[queued + lane], lane);
                limit = list.distance_at(neighbors - 1);
            }
            __syncwarp();
        }
    }
    list.insert(lane < queued ? queue[lane] : NOTHING, lane);
#pragma unroll
    for (int part = 0; part < LISTS; ++part) queue[part * WARP + lane] = list.keys[part];
    __syncwarp();
}

// The first K points of a ball in the warp's queue, by their index, and NOTHING in the places that are left. As in
// NumPy a point is left out for being farther, so that no ball is empty, not even of coordinates that are NaN.
INLINE void find_in_ball(const float* points, int channels, int size, float3 center, int neighbors, float limit,
                         Key* queue) {
    __shared__ float tile[3][TILE];
    const int lane = threadIdx.x % WARP;
    int queued = 0;

    for (int first = 0; first < size; first += TILE) {
        load_tile(tile, points, channels, first, size);  // for the other warps, too, whose balls may not be full
        for (int start = lane; start - lane < min(TILE, size - first) && queued < neighbors; start += AHEAD * WARP) {
            bool inside[AHEAD];
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ++ahead) {
                const int slot = start + ahead * WARP;
                const float squared =
                    squared_distance(tile[0][slot], tile[1][slot], tile[2][slot], center.x, center.y, center.z);
                inside[ahead] = first + slot < size && !(squared > limit);
            }
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ++ahead) {
                const unsigned joining = __ballot_sync(ALL_LANES, inside[ahead]);
                const int place = queued + __popc(joining & ((1u << lane) - 1));
                if (inside[ahead] && place < neighbors) queue[place] = first + start + ahead * WARP;
                queued += __popc(joining);
            }
        }
    }
    for (int place = queued + lane; place < neighbors; place += WARP) queue[place] = NOTHING;
    __syncwarp();
}

// Patches of the nearest points, or, with no lists, of the first ones within a squared distance, the limit.
template <int LISTS>
INLINE void group(const float* points, const int* sizes, const float* centers, int most, int channels, int groups,
                  int neighbors, float limit, float* patches) {
    __shared__ Key queues[GROUPING_WARPS][LISTS > 0 ? QUEUE : MOST_IN_BALL];
    const int cloud = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int wanted = blockIdx.y * GROUPING_WARPS + warp;
    const long long row = static_cast<long long>(cloud) * groups + min(wanted, groups - 1);
    points += static_cast<long long>(cloud) * most * channels;
    const float3 center = make_float3(centers[3 * row], centers[3 * row + 1], centers[3 * row + 2]);

    Key* found = queues[warp];
    const int size = size_of(sizes, cloud, most);
    if constexpr (LISTS > 0) find_nearest<LISTS>(points, channels, size, center, neighbors, found);
    else find_in_ball(points, channels, size, center, neighbors, limit, found);
    if (wanted >= groups) return;  // a warp without a center of its own only helped to load

    float* patch = patches + row * neighbors * channels;
    for (int value = lane; value < neighbors * channels; value += WARP) {
        const int rank = value / channels, channel = value % channels;
        // Fewer points than K: the first one is repeated, which is the nearest or that of the lowest index.
        const Key key = found[rank] == NOTHING ? found[0] : found[rank];
        const float number = points[static_cast<long long>(static_cast<unsigned>(key)) * channels + channel];
        const float origin = channel == 0 ? center.x : channel == 1 ? center.y : center.z;
        patch[value] = channel < 3 ? __fsub_rn(number, origin) : number;
    }
}

#define GROUP(NAME, LISTS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(GROUPING_THREADS) NAME(                                             \
        const float* __restrict__ points, const int* __restrict__ sizes, const float* __restrict__ centers,          \
        int most, int channels, int groups, int neighbors, float* __restrict__ patches) {                            \
        group<LISTS>(points, sizes, centers, most, channels, groups, neighbors, 0.0f, patches);                      \
    }

GROUP(group_32, 1)  // K up to 32
GROUP(group_64, 2)  // K up to 64

// K up to MOST_IN_BALL; `limit` has the bits of the squared radius.
extern "C" __global__ void __launch_bounds__(GROUPING_THREADS)
    group_ball(const float* __restrict__ points, const int* __restrict__ sizes, const float* __restrict__ centers,
               int most, int channels, int groups, int neighbors, int limit, float* __restrict__ patches) {
    group<0>(points, sizes, centers, most, channels, groups, neighbors, __int_as_float(limit), patches);
}
