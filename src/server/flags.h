// The flags of `jewel serve`: vLLM's names and kinds, and what each of them means here.
//
// One table serves the command line, the YAML file, --help and --check-config. A flag's name is written with
// dashes; in a file or on the command line underscores do as well.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace jewel {

enum class FlagKind : uint8_t {
  kBool,    // --x, --no-x; in a file true or false
  kInt,     //
  kTokens,  // an integer that may end in k (1,000), K (1,024), m, M, g or G; or "auto" or -1 where that means
            // "fit"
  kNumber,  //
  kText,    //
  kTexts,   // one or more words, or a list in a file
  kJson,    // a JSON value; in a file a map; on the command line also --x.key value
};

enum class FlagUse : uint8_t {
  kUsed,         // does here what it does there
  kMapped,       // does what it asks for by another way (the note says how)
  kIgnored,      // has no meaning here and does no harm; accepted with any value
  kOnlyDefault,  // accepted while its value asks for what Jewel does anyway (Flag::only), else an error
  kRetired,      // was removed from vLLM; accepted with a warning
};

struct Flag {
  std::string_view name;
  FlagKind kind;
  FlagUse use;
  std::string_view note;      // --help and --check-config: what it does, or why it is ignored
  std::string_view fallback;  // the default, for --help; empty: none
  std::string_view only;      // kOnlyDefault: the accepted value
  std::string_view also;      // a second spelling: "-q", "-tp"

  constexpr Flag(std::string_view flag_name, FlagKind flag_kind, FlagUse flag_use, std::string_view flag_note,
                 std::string_view flag_fallback = {}, std::string_view flag_only = {},
                 std::string_view flag_also = {})
      : name(flag_name),
        kind(flag_kind),
        use(flag_use),
        note(flag_note),
        fallback(flag_fallback),
        only(flag_only),
        also(flag_also) {}
};

std::span<const Flag> serve_flags();

// By its name with dashes or underscores, without leading dashes; nullptr when there is none.
const Flag* find_flag(std::string_view name);
// The flag whose name looks most like it, or empty when none does.
std::string_view closest_flag(std::string_view name);

// What --help prints about the flags.
std::string flags_help();

}  // namespace jewel
