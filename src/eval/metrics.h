// What an answer is worth against the wanted ones: 0 (wrong) to 1 (right). A task names its metric:
//
//   exact            the answer is a wanted one, white space at the ends apart
//   contains         a wanted one stands in it as a word of its own ("3" is not in "13"), letter case apart
//   anls             ANLS: for each wanted answer, 1 - d where the normalized Levenshtein distance d < 0.5,
//   else 0;
//                    the best counts. Lower case, white space trimmed. Biten et al., "Scene Text Visual
//                    Question Answering", ICCV 2019 (ST-VQA, also DocVQA's)
//   relaxed_number   a number within 5 % of the wanted one, "12%" being 0.12; what is no number must be
//   equal, letter
//                    case apart. Methani et al., "PlotQA", WACV 2020; Masry et al., "ChartQA", ACL Findings
//                    2022. They score bare answers; beyond them, the one number of a sentence counts as its
//                    answer
//   multiple_choice  the letter that was chosen is a wanted one; see chosen_letter()
//   word_error       1 - word error rate, at least 0. The rate: substitutions + deletions + insertions of the
//                    shortest edit, over the words wanted (NIST's sclite); words in lower case, without the
//                    punctuation at their ends
//
// Pure functions, any thread. Text is UTF-8; lengths and distances count characters, letter case is ASCII's
// alone.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace jewel {

enum class Metric : uint8_t { kExact, kContains, kAnls, kRelaxedNumber, kMultipleChoice, kWordError };

std::optional<Metric> metric_of(std::string_view name);
std::string_view name_of(Metric metric);
inline constexpr std::string_view kMetricNames =
    "exact, contains, anls, relaxed_number, multiple_choice, word_error";

// The best over `wanted`. `choices` are the options' texts of a multiple-choice task (option 0 is A); may be
// empty.
double score(Metric metric, std::string_view answer, std::span<const std::string> wanted,
             std::span<const std::string> choices = {});

// The pieces, for their own sake.

double anls(std::string_view answer, std::string_view wanted);

struct WordErrors {
  int edits = 0;
  int words = 0;  // of the wanted text
};
WordErrors word_errors(std::string_view answer, std::string_view wanted);

// "1,234.5", "-3e4", "12 %", "$5": the number a whole text is.
std::optional<double> whole_number(std::string_view text);

// The letter that an answer chooses, 'A' to 'Z': the text is one letter, perhaps in brackets or with a full
// stop; else what follows the last "answer is", "answer:" or "option"; else a letter that begins the text and
// is followed by
// ".", ")" or ":"; else the only letter in brackets; else the only option whose text the answer is or
// contains.
std::optional<char> chosen_letter(std::string_view answer, std::span<const std::string> choices);

}  // namespace jewel
