// Tests and times of the CUDA attention kernels, stand-alone: every result against float64 on random Gaussian
// data, the promises of bitwise sameness, then times in graphs over buffers beyond L2, beside the measured
// read rate of the card. Exit status 1 when a check fails.
//
//   cuda_attention [decode_check] [decode_bench] [prefill_check] [prefill_bench]    all when nothing is named
//   cuda_attention small decode_check prefill_check    few cases, for compute-sanitizer
//   cuda_attention decode_runs                         decode by runs a block and batch
//   cuda_attention profile DIM BATCH CONTEXT RUNS      three launches, for a profiler
#include "cuda_attention_prefill.h"

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);
  const auto asked = [&](const char* what) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], what) == 0) return true;
    }
    return argc == 1;
  };
  small = argc > 1 && asked("small");
  cudaDeviceProp device;
  CUDA(cudaGetDeviceProperties(&device, 0));
  std::vector<AttentionDesign> designs = {AttentionDesign::kPortable};
  if (device.major >= 9) designs.push_back(AttentionDesign::kSm90);
  std::printf("%s, sm_%d%d\n", device.name, device.major, device.minor);
  if (argc == 6 && std::strcmp(argv[1], "profile") == 0) {
    profile_decode(std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]));
    return 0;
  }
  if (asked("decode_check")) {
    for (const ModelCase& model : kModels) {
      if (small && &model >= kModels + 2) break;
      for (KvFormat format : {KvFormat::kF8E4M3, KvFormat::kBF16}) {
        for (AttentionDesign design : designs) check_decode(model, format, design);
      }
    }
  }
  if (asked("decode_bench")) {
    const double rate = read_rate();
    for (KvFormat format : {KvFormat::kF8E4M3, KvFormat::kBF16}) {
      for (AttentionDesign design : designs) {
        for (int batch : {1, 8, 32, 100}) bench_decode(kModels[0].shape, format, design, batch, 1024, rate);
        for (int batch : {1, 8, 32, 100}) {
          for (int context : {512, 3500, 16384}) {
            if (batch * context <= 32 * 16384 && !(batch == 100 && context > 3500)) {
              bench_decode(kModels[1].shape, format, design, batch, context, rate);
            }
          }
        }
      }
    }
  }
  if (argc > 1 && asked("decode_runs")) {
    const double rate = read_rate();
    for (int runs : {1, 2, 4, 8}) {
      std::printf("%d runs a block\n", runs);
      const auto bench = [&](int model, int batch, int context) {
        bench_decode(kModels[model].shape, KvFormat::kF8E4M3, AttentionDesign::kSm90, batch, context, rate,
                     runs);
      };
      for (int batch : {1, 4, 8, 16, 24, 32, 64, 100}) {
        bench(0, batch, 1024);
        bench(1, batch, 512);
        if (batch == 8 || batch == 32) bench(1, batch, 3500);
      }
    }
  }
  if (asked("prefill_check")) prefill_checks(designs);
  if (asked("prefill_bench")) prefill_benches(designs);
  std::printf(failures == 0 ? "all checks passed\n" : "%d CHECKS FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}
