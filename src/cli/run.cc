// jewel run MODEL [--image FILE]… [PROMPT]: one answer, streamed to stdout.

#include <fmt/format.h>
#include <unistd.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/local_model.h"
#include "cli/model_directory.h"
#include "model/json_reader.h"
#include "model/json_text.h"
#include "text/text_file.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kMaxRequestBytes = 64 << 20;  // of a file with messages or tools

struct RunFlags {
  std::string model;
  std::string revision;
  std::string prompt;
  std::vector<std::string> images;
  std::string system;
  std::string tools_file;
  std::string messages_file;
  bool think = false;
  bool raw = false;
  bool json = false;
  bool quiet = false;
  int max_tokens = 512;
  int image_tokens = 0;
  Sampling sampling;
  EngineOptions engine = one_by_one();
};

// stdin without its last newline: `echo Hi | jewel run MODEL` asks "Hi".
std::string read_stdin() {
  std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

Result<json::array> read_array(const std::string& path, std::string_view key) {
  JEWEL_ASSIGN(std::string text, read_text_file(path, kMaxRequestBytes));
  // A bare array is wrapped, so that one reader serves both shapes.
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '[') text = fmt::format("{{\"{}\": {}}}", key, text);
  JEWEL_ASSIGN(const json::object object, parse_json_object(text, path));
  JsonReader reader(object, path);
  const json::array* array = reader.optional_array(key);
  if (reader.failed()) return reader.error();
  if (array == nullptr)
    return invalid(fmt::format("{}: expected an array, or an object with \"{}\"", path, key));
  return *array;
}

Result<ChatInput> build_input(const RunFlags& flags) {
  ChatInput input{.think = flags.think, .images = flags.images, .image_tokens = flags.image_tokens};
  if (flags.raw) {
    input.raw = flags.prompt;
    return input;
  }
  if (!flags.tools_file.empty()) {
    JEWEL_ASSIGN(input.tools, read_array(flags.tools_file, "tools"));
  }
  if (!flags.messages_file.empty()) {
    JEWEL_ASSIGN(input.messages, read_array(flags.messages_file, "messages"));
    return input;
  }
  if (!flags.system.empty())
    input.messages.push_back(json::object{{"role", "system"}, {"content", flags.system}});
  json::value content = json::string(flags.prompt);
  if (!flags.images.empty()) {  // images first: what the model was trained on
    json::array parts;
    for (size_t i = 0; i < flags.images.size(); ++i) parts.push_back(json::object{{"type", "image"}});
    parts.push_back(json::object{{"type", "text"}, {"text", flags.prompt}});
    content = std::move(parts);
  }
  input.messages.push_back(json::object{{"role", "user"}, {"content", std::move(content)}});
  return input;
}

// The answer goes to stdout as it comes; reasoning to stderr, dimmed on a terminal. Each starts on a line of
// its own.
class Printer {
 public:
  void operator()(const OutputPiece& piece) {
    switch (piece.kind) {
      case OutputPiece::Kind::kReasoning:
        write(stderr, piece.text);
        break;
      case OutputPiece::Kind::kContent:
        write(stdout, piece.text);
        break;
      case OutputPiece::Kind::kCallStart:
        call_name_ = piece.text;
        break;
      case OutputPiece::Kind::kCallArguments:
        break;  // printed whole at its end
      case OutputPiece::Kind::kCallEnd:
        if (stream_ != nullptr && !at_line_start_) write(stream_, "\n");
        write(stdout, fmt::format("{}({})\n", call_name_, piece.text));
        break;
    }
  }

  void finish() {
    if (stream_ != nullptr && !at_line_start_) write(stream_, "\n");
    std::fflush(stdout);
  }

 private:
  void write(std::FILE* stream, std::string_view text) {
    if (text.empty()) return;
    if (stream_ != nullptr && stream != stream_ && !at_line_start_) emit(stream_, "\n");
    stream_ = stream;
    emit(stream, text);
    at_line_start_ = text.back() == '\n';
  }

  static void emit(std::FILE* stream, std::string_view text) {
    const bool dim = stream == stderr && ::isatty(STDERR_FILENO) != 0;
    if (dim) std::fputs("\033[2m", stream);
    std::fwrite(text.data(), 1, text.size(), stream);
    if (dim) std::fputs("\033[0m", stream);
    std::fflush(stream);
  }

  std::FILE* stream_ = nullptr;
  bool at_line_start_ = true;
  std::string call_name_;
};

double rate(int tokens, double seconds) {
  return seconds > 0 ? tokens / seconds : 0;
}

json::object energy_as_json(const Energy& energy) {
  return {{"joules", energy.joules},
          {"image_joules", energy.image_joules},
          {"prefill_joules", energy.prefill_joules},
          {"decode_joules", energy.decode_joules},
          {"reasoning_joules", energy.reasoning_joules},
          {"idle_share_joules", energy.idle_share_joules},
          {"method", energy.method}};
}

json::object answer_as_json(const Answer& answer, double load_s) {
  const Usage& usage = answer.finish.usage;
  const Timings& timings = answer.finish.timings;
  json::array calls;
  for (const ToolCall& call : answer.tool_calls) {
    calls.push_back(json::object{{"type", "function"},
                                 {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  json::object out = {
      {"text", answer.content},
      {"reasoning", answer.reasoning.empty() ? json::value(nullptr) : json::value(answer.reasoning)},
      {"tool_calls", std::move(calls)},
      {"finish_reason", name_of(answer.finish.reason)},
      {"token_ids", json::value_from(answer.token_ids)},
      {"usage",
       {{"prompt_tokens", usage.prompt_tokens},
        {"completion_tokens", usage.completion_tokens},
        {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
        {"prompt_tokens_details",
         {{"cached_tokens", usage.cached_tokens}, {"image_tokens", usage.image_tokens}}},
        {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}}},
      {"timings",
       {{"load_s", load_s},
        {"queue_s", timings.queue_s},
        {"image_s", timings.image_s},
        {"ttft_s", timings.ttft_s},
        {"decode_s", timings.decode_s},
        {"prompt_tok_s", rate(usage.prompt_tokens, timings.prefill_s)},
        {"decode_tok_s", rate(usage.completion_tokens - 1, timings.decode_s)}}},
  };
  if (const auto& energy = answer.finish.energy) out["usage"].as_object()["energy"] = energy_as_json(*energy);
  return out;
}

void print_statistics(const Answer& answer, double load_s) {
  const Usage& usage = answer.finish.usage;
  const Timings& timings = answer.finish.timings;
  std::string line = fmt::format("{} tokens, {:.1f} tok/s", usage.completion_tokens,
                                 rate(usage.completion_tokens - 1, timings.decode_s));
  line += fmt::format("; prompt {} tokens", usage.prompt_tokens);
  if (usage.image_tokens > 0) line += fmt::format(" ({} of images)", usage.image_tokens);
  line += fmt::format(", {:.0f} tok/s", rate(usage.prompt_tokens, timings.prefill_s));
  line += fmt::format("; first token after {:.2f} s, load {:.2f} s", timings.ttft_s, load_s);
  if (const auto& energy = answer.finish.energy)
    line += fmt::format("; {:.3g} J by {}", energy->joules, energy->method);
  if (answer.finish.reason == EndReason::kLength) line += "; stopped at --max-tokens";
  fmt::print(stderr, "{}\n", line);
}

int run(RunFlags flags) {
  if (flags.prompt.empty() && flags.messages_file.empty()) {
    if (::isatty(STDIN_FILENO) != 0) {
      fmt::print(stderr, "jewel run: no prompt; give it as the last argument or on stdin\n");
      return kExitUsage;
    }
    flags.prompt = read_stdin();
  }
  const auto start = std::chrono::steady_clock::now();
  auto input = build_input(flags);
  if (!input.ok()) return report(input.error());
  const auto directory = model_directory(flags.model, flags.revision);
  if (!directory.ok()) return report(directory.error());
  flags.engine.progress = loading_progress(flags.model);
  auto engine = Engine::load(*directory, flags.engine);
  if (!engine.ok()) return report(engine.error());
  if (!flags.quiet) {
    for (const std::string& note : (*engine)->info().notes) log().info("{}: {}", flags.model, note);
  }
  const double load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  Printer printer;
  std::function<void(const OutputPiece&)> on_piece;
  if (!flags.json) on_piece = [&](const OutputPiece& piece) { printer(piece); };
  const auto answered = answer(**engine, *input, flags.sampling, flags.max_tokens, on_piece);
  if (!answered.ok()) {
    printer.finish();
    return report(answered.error());
  }
  if (flags.json) {
    fmt::print("{}\n", json_line(answer_as_json(*answered, load_s)));
  } else {
    printer.finish();
  }
  if (!flags.quiet) print_statistics(*answered, load_s);
  return kExitDone;
}

}  // namespace

Command add_run_command(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* run_app =
      app.add_subcommand("run", "Answers one prompt, about images if given; streams to stdout");
  run_app->footer(
      "The answer goes to stdout; reasoning and statistics go to stderr.\n"
      "\n"
      "Examples:\n"
      "  jewel run models/jewel-demo \"Who are you?\"\n"
      "  jewel run google/gemma-4-E4B-it \"Write a haiku about rain\"\n"
      "  jewel run models/jewel-demo --image a.png --image b.jpg --image-tokens 280 \"Compare them\"\n"
      "  echo \"What is 2 + 2?\" | jewel run MODEL --think --temperature 0 --json");
  run_app->add_option("MODEL", flags->model, kModelHelp)->required();
  run_app->add_option("--revision", flags->revision, kRevisionHelp);
  run_app->add_option("PROMPT", flags->prompt, "What to ask; read from stdin when left out");
  run_app
      ->add_option("--image", flags->images,
                   "Image file (JPEG, PNG, WebP, GIF, BMP); repeat for several, in order")
      ->allow_extra_args(false);
  run_app->add_option("--image-tokens", flags->image_tokens,
                      "Soft tokens per image: 70, 140, 280, 560 or 1120 (default: the model's)");
  run_app->add_option("--system", flags->system, "System message");
  run_app
      ->add_option("--messages", flags->messages_file,
                   "JSON file with a whole conversation (OpenAI chat messages) instead of PROMPT")
      ->check(CLI::ExistingFile);
  run_app->add_option("--tools", flags->tools_file, "JSON file with tool declarations (OpenAI format)")
      ->check(CLI::ExistingFile);
  run_app->add_flag("--think", flags->think, "Let the model reason before it answers");
  run_app->add_flag("--raw", flags->raw,
                    "Complete PROMPT as it stands, without the chat template; control tokens count");
  run_app->add_option("--max-tokens", flags->max_tokens, "Most tokens to generate")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  run_app->add_option("--temperature", flags->sampling.temperature, "0 is greedy (default: the model's)")
      ->check(CLI::Range(0.0, 100.0));
  run_app
      ->add_option("--top-k", flags->sampling.top_k,
                   "Sample among the K likeliest, 0 is off (default: the model's)")
      ->check(CLI::NonNegativeNumber);
  run_app
      ->add_option("--top-p", flags->sampling.top_p,
                   "Sample among the likeliest that sum to P (default: the model's)")
      ->check(CLI::Range(0.0, 1.0));
  run_app->add_option("--min-p", flags->sampling.min_p, "Drop tokens less likely than P times the likeliest")
      ->check(CLI::Range(0.0, 1.0));
  run_app
      ->add_option("--repetition-penalty", flags->sampling.repetition_penalty,
                   "Above 1: seen tokens are less likely")
      ->check(CLI::Range(0.01, 100.0));
  run_app
      ->add_option("--presence-penalty", flags->sampling.presence_penalty,
                   "Subtracted once per token already generated")
      ->check(CLI::Range(-2.0, 2.0));
  run_app
      ->add_option("--frequency-penalty", flags->sampling.frequency_penalty,
                   "Subtracted per use of a token already generated")
      ->check(CLI::Range(-2.0, 2.0));
  run_app->add_option("--seed", flags->sampling.seed, "Same seed, same text (default: random)");
  run_app
      ->add_option("--device", flags->engine.device, "auto (a GPU where there is one), cpu, cuda or cuda:N")
      ->capture_default_str();
  run_app->add_option("--dtype", flags->engine.dtype, "Activations: auto (bfloat16), bfloat16 or float32")
      ->capture_default_str();
  run_app
      ->add_option("--kv-cache-dtype", flags->engine.kv_cache_dtype,
                   "auto (the checkpoint's), bfloat16, fp8 or float32")
      ->capture_default_str();
  run_app
      ->add_option("--max-model-len", flags->engine.max_model_len,
                   "Most tokens of prompt and answer (default: the model's)")
      ->check(CLI::PositiveNumber);
  run_app->add_option("--threads", flags->engine.n_threads, "CPU threads (default: one per usable core)")
      ->check(CLI::Range(1, 1024));
  run_app->add_option("--meter", flags->engine.meter, "Of joules: auto, none, nvml, rapl")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "none", "nvml", "rapl"}));
  run_app->add_flag("--json", flags->json, "Print one JSON object instead of streaming");
  run_app->add_flag("--quiet", flags->quiet, "No notes and no statistics on stderr");
  return [flags] { return run(*flags); };
}

}  // namespace jewel
