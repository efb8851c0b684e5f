// write_synthetic_tokenizer FILE: for tools/goldens_text/capture.py, which needs the synthetic tokenizer as a
// file.
#include <cstdio>
#include <string>

#include "synthetic_tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_synthetic_tokenizer FILE\n");
    return 2;
  }
  const std::string json = jewel::synthetic_tokenizer_json();
  std::FILE* file = std::fopen(argv[1], "wb");
  const bool ok = file != nullptr && std::fwrite(json.data(), 1, json.size(), file) == json.size() &&
                  std::fclose(file) == 0;
  if (!ok) std::perror(argv[1]);
  return ok ? 0 : 1;
}
