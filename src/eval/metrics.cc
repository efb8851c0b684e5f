#include "eval/metrics.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "text/utf8.h"

namespace jewel {
namespace {

constexpr double kAnlsThreshold = 0.5;
constexpr double kRelaxed = 0.05;

constexpr std::array<std::pair<std::string_view, Metric>, 6> kMetrics = {
    {{"exact", Metric::kExact},
     {"contains", Metric::kContains},
     {"anls", Metric::kAnls},
     {"relaxed_number", Metric::kRelaxedNumber},
     {"multiple_choice", Metric::kMultipleChoice},
     {"word_error", Metric::kWordError}}};

bool space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
bool digit(char c) {
  return c >= '0' && c <= '9';
}
bool letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
// Of a word: letters, digits and all beyond ASCII.
bool of_word(char c) {
  return letter(c) || digit(c) || static_cast<unsigned char>(c) >= 0x80;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && space(text.front())) text.remove_prefix(1);
  while (!text.empty() && space(text.back())) text.remove_suffix(1);
  return text;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

// Lower case, each run of white space one space.
std::string plain(std::string_view text) {
  std::string out;
  for (const char c : lower(trimmed(text))) {
    if (!space(c)) {
      out += c;
    } else if (out.back() != ' ') {
      out += ' ';
    }
  }
  return out;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::max<size_t>(utf8_length(text, at), 1);
    out.push_back(text.substr(at, length));
    at += length;
  }
  return out;
}

// Levenshtein's distance: the fewest insertions, deletions and substitutions. Memory of one row.
template <typename Item>
int edit_distance(const std::vector<Item>& a, const std::vector<Item>& b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = std::exchange(row[0], static_cast<int>(i));
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> out;
  const std::string all = plain(text);
  for (size_t at = 0; at < all.size();) {
    const size_t end = std::min(all.find(' ', at), all.size());
    std::string_view word = std::string_view(all).substr(at, end - at);
    while (!word.empty() && !of_word(word.front())) word.remove_prefix(1);
    while (!word.empty() && !of_word(word.back())) word.remove_suffix(1);
    if (!word.empty()) out.emplace_back(word);
    at = end + 1;
  }
  return out;
}

bool contains_word(std::string_view text, std::string_view word) {
  if (word.empty()) return false;
  for (size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    // "3.5" does not hold the word "3", "3." does.
    const bool number_goes_on = end + 1 < text.size() && (text[end] == '.' || text[end] == ',') &&
                                digit(text[end + 1]) && digit(word.back());
    const bool number_began =
        at > 1 && (text[at - 1] == '.' || text[at - 1] == ',') && digit(text[at - 2]) && digit(word.front());
    const bool free_before = at == 0 || !of_word(text[at - 1]) || !of_word(word.front());
    const bool free_behind = end == text.size() || !of_word(text[end]) || !of_word(word.back());
    if (free_before && free_behind && !number_goes_on && !number_began) return true;
  }
  return false;
}

// Numbers inside of a text: digits with thousands separators, a fraction, an exponent, a sign, a percent
// sign.
std::vector<double> numbers_in(std::string_view text) {
  std::vector<double> found;
  for (size_t at = 0; at < text.size();) {
    const bool begins = digit(text[at]) && (at == 0 || !of_word(text[at - 1]));
    if (!begins) {
      ++at;
      continue;
    }
    size_t end = at;
    while (end < text.size() && (digit(text[end]) || ((text[end] == '.' || text[end] == ',') &&
                                                      end + 1 < text.size() && digit(text[end + 1]))))
      ++end;
    if (end < text.size() && text[end] == '%') ++end;
    const size_t begin = at > 0 && text[at - 1] == '-' ? at - 1 : at;
    if (const auto number = whole_number(text.substr(begin, end - begin))) found.push_back(*number);
    at = end;
  }
  return found;
}

bool relaxed_equal(std::string_view answer, std::string_view wanted) {
  const auto target = whole_number(wanted);
  auto given = whole_number(answer);
  if (!target) return plain(answer) == plain(wanted);
  if (!given) {
    const std::vector<double> numbers = numbers_in(answer);
    if (numbers.size() == 1) given = numbers.front();
  }
  if (!given) return false;
  if (*target == 0) return *given == 0;
  return std::fabs(*given - *target) <= kRelaxed * std::fabs(*target);
}

char upper(char c) {
  return static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
}

// The letter that a text begins with, when it stands alone: "B", "(B)", "B.", "**B**".
std::optional<char> leading_letter(std::string_view text) {
  while (!text.empty() &&
         (space(text.front()) || std::string_view("([*\"'`:").find(text.front()) != std::string_view::npos))
    text.remove_prefix(1);
  if (text.empty() || !letter(text.front())) return std::nullopt;
  if (text.size() > 1 && of_word(text[1])) return std::nullopt;
  // "a dog" and "I think" begin with words, not with options.
  const bool word_alone = std::string_view("aAiI").find(text.front()) != std::string_view::npos;
  if (word_alone && text.size() > 2 && text[1] == ' ' && letter(text[2])) return std::nullopt;
  return upper(text.front());
}

}  // namespace

std::optional<Metric> metric_of(std::string_view name) {
  const auto found = std::ranges::find(kMetrics, name, [](const auto& pair) { return pair.first; });
  if (found == kMetrics.end()) return std::nullopt;
  return found->second;
}

std::string_view name_of(Metric metric) {
  return std::ranges::find(kMetrics, metric, [](const auto& pair) { return pair.second; })->first;
}

double anls(std::string_view answer, std::string_view wanted) {
  const std::string given = lower(trimmed(answer));
  const std::string target = lower(trimmed(wanted));
  const auto a = characters(given);
  const auto b = characters(target);
  const size_t longer = std::max(a.size(), b.size());
  if (longer == 0) return 1;
  const double distance = edit_distance(a, b) / static_cast<double>(longer);
  return distance < kAnlsThreshold ? 1 - distance : 0;
}

WordErrors word_errors(std::string_view answer, std::string_view wanted) {
  const std::vector<std::string> target = words(wanted);
  return {edit_distance(target, words(answer)), static_cast<int>(target.size())};
}

std::optional<double> whole_number(std::string_view text) {
  text = trimmed(text);
  if (!text.empty() && text.back() == '.') text = trimmed(text.substr(0, text.size() - 1));
  bool negative = false, percent = false;
  if (!text.empty() && (text.front() == '-' || text.front() == '+')) {
    negative = text.front() == '-';
    text = trimmed(text.substr(1));
  }
  for (const std::string_view currency : {"$", "€", "£", "¥"}) {
    if (text.starts_with(currency)) text = trimmed(text.substr(currency.size()));
  }
  if (!text.empty() && text.back() == '%') {
    percent = true;
    text = trimmed(text.substr(0, text.size() - 1));
  }
  // A comma separates thousands where three digits follow; elsewhere this is no number.
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      digits += text[i];
      continue;
    }
    const auto group = text.substr(i + 1, 3);
    const bool whole = group.size() == 3 && std::ranges::all_of(group, digit) &&
                       (i + 4 == text.size() || !digit(text[i + 4]));
    if (!whole || i == 0 || !digit(text[i - 1])) return std::nullopt;
  }
  if (digits.empty() || !(digit(digits.front()) || digits.front() == '.')) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return (negative ? -value : value) / (percent ? 100 : 1);
}

std::optional<char> chosen_letter(std::string_view answer, std::span<const std::string> choices) {
  const std::string_view text = trimmed(answer);
  const auto allowed = [&](std::optional<char> c) {
    return c && (choices.empty() || *c < 'A' + static_cast<int>(choices.size()));
  };
  std::string bare;
  for (const char c : text) {
    if (of_word(c)) bare += c;
  }
  if (bare.size() == 1 && letter(bare[0]) && allowed(upper(bare[0]))) return upper(bare[0]);

  const std::string low = lower(text);
  for (const std::string_view cue : {"answer is", "answer:", "option"}) {
    const size_t at = low.rfind(cue);
    if (at == std::string::npos) continue;
    if (const auto c = leading_letter(text.substr(at + cue.size())); allowed(c)) return c;
  }
  if (text.size() > 1 && std::string_view(".):").find(text[1]) != std::string_view::npos) {
    if (const auto c = leading_letter(text); allowed(c)) return c;
  }
  std::optional<char> in_brackets;
  bool several = false;
  for (size_t i = 0; i + 2 < text.size(); ++i) {
    if (text[i] != '(' || text[i + 2] != ')' || !letter(text[i + 1]) || !allowed(upper(text[i + 1])))
      continue;
    several = several || (in_brackets && *in_brackets != upper(text[i + 1]));
    in_brackets = upper(text[i + 1]);
  }
  if (in_brackets && !several) return in_brackets;

  const std::string whole = plain(text);
  for (const bool equal : {true, false}) {
    std::optional<char> found;
    int n = 0;
    for (size_t i = 0; i < choices.size() && i < 26; ++i) {
      const std::string choice = plain(choices[i]);
      if (!(equal ? whole == choice : contains_word(whole, choice))) continue;
      found = static_cast<char>('A' + static_cast<int>(i));
      ++n;
    }
    if (n == 1) return found;
  }
  return std::nullopt;
}

double score(Metric metric, std::string_view answer, std::span<const std::string> wanted,
             std::span<const std::string> choices) {
  double best = 0;
  const std::string given = plain(answer);
  for (const std::string& one : wanted) {
    double points = 0;
    switch (metric) {
      case Metric::kExact:
        points = trimmed(answer) == trimmed(one) ? 1 : 0;
        break;
      case Metric::kContains:
        points = contains_word(given, plain(one)) ? 1 : 0;
        break;
      case Metric::kAnls:
        points = anls(answer, one);
        break;
      case Metric::kRelaxedNumber:
        points = relaxed_equal(answer, one) ? 1 : 0;
        break;
      case Metric::kMultipleChoice: {
        const auto chosen = chosen_letter(answer, choices);
        points = chosen && chosen == chosen_letter(one, choices) ? 1 : 0;
        break;
      }
      case Metric::kWordError: {
        const WordErrors errors = word_errors(answer, one);
        points = std::max(0.0, 1 - static_cast<double>(errors.edits) / std::max(errors.words, 1));
        break;
      }
    }
    best = std::max(best, points);
  }
  return best;
}

}  // namespace jewel
