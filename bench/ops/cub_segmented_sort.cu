// cub::DeviceSegmentedSort on keys: nvcc -O3 cub_segmented_sort.cu && ./a.out SEGMENTS LENGTH. Prints milliseconds, one
// run a line.
#include <cstdio>
#include <cstdlib>
#include <cub/cub.cuh>
#include <vector>

namespace {

constexpr int kRepetitions = 21;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const int segments = std::atoi(arguments[1]), length = std::atoi(arguments[2]), total = segments * length;
  std::vector<float> scores(static_cast<std::size_t>(total));
  std::vector<int> offsets;
  unsigned state = 1;
  for (float& score : scores) score = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
  for (int segment = 0; segment <= segments; ++segment) offsets.push_back(segment * length);
  float *in, *out;
  int* bounds;
  void* workspace = nullptr;
  std::size_t bytes = 0;
  check(cudaMalloc(&in, scores.size() * sizeof(float)));
  check(cudaMalloc(&out, scores.size() * sizeof(float)));
  check(cudaMalloc(&bounds, offsets.size() * sizeof(int)));
  check(cudaMemcpy(in, scores.data(), scores.size() * sizeof(float), cudaMemcpyHostToDevice));
  check(cudaMemcpy(bounds, offsets.data(), offsets.size() * sizeof(int), cudaMemcpyHostToDevice));
  const auto sort = [&] {
    return cub::DeviceSegmentedSort::SortKeysDescending(workspace, bytes, in, out, total, segments, bounds, bounds + 1);
  };
  check(sort());
  check(cudaMalloc(&workspace, bytes));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (int repetition = 0; repetition < kRepetitions + 3; ++repetition) {
    check(cudaEventRecord(begin));
    check(sort());
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (repetition >= 3) std::printf("%f\n", milliseconds);
  }
}
