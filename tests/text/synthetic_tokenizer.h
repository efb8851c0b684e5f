// A tokenizer of Gemma 4's size and make, built from a recipe: 262,144 entries with Gemma's special tokens at
// Gemma's ids, byte fallback, newline and space runs, characters of many scripts, and merged pieces with
// every way of splitting them (228,595 merges; Gemma has 514,906). The entries mean nothing; the shape is
// what a test needs.
#pragma once

#include <string>

namespace jewel {

// The text of a tokenizer.json, the same on every machine.
std::string synthetic_tokenizer_json();

}  // namespace jewel
