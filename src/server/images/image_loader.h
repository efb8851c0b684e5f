// ImageLoader: threads that bring the pictures of requests, a few of each at a time, so that neither the HTTP
// threads nor the engine's wait for somebody else's server, and no request's slow addresses hold up another's
// quick ones for longer than a fetch may take.
//
// Any thread may start() and give up. The threads begin with the first picture.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "server/images/image_source.h"

namespace jewel {

// A picture's bytes, empty until they were brought. They count against ImageRules::max_held_bytes for as long
// as anybody keeps them.
struct BroughtImage {
  BroughtImage() = default;
  ~BroughtImage() {
    if (held != nullptr) *held -= bytes.size();
  }
  BroughtImage(const BroughtImage&) = delete;
  BroughtImage& operator=(const BroughtImage&) = delete;

  std::string bytes;
  std::shared_ptr<std::atomic<size_t>> held;
};

// A picture that a request names by its address. Whoever reads the request puts `file()` where the engine
// wants the picture's bytes; they are there before the engine sees the request.
struct WantedImage {
  WantedImage(std::string address, std::string at) : url(std::move(address)), field(std::move(at)) {}

  std::string url;
  std::string field;  // "messages[0].content[1].image_url.url": for errors
  std::shared_ptr<BroughtImage> image = std::make_shared<BroughtImage>();

  std::shared_ptr<const std::string> file() const { return {image, &image->bytes}; }
};

class ImageLoader {
 public:
  explicit ImageLoader(ImageRules rules);
  ~ImageLoader();  // gives up what is under way; loads that are left never finish
  ImageLoader(const ImageLoader&) = delete;
  ImageLoader& operator=(const ImageLoader&) = delete;

  // The pictures of one request.
  class Load {
   public:
    Load(std::vector<WantedImage> wanted, std::function<void()> on_finished)
        : wanted_(std::move(wanted)), on_finished_(std::move(on_finished)) {}

   private:
    friend class ImageLoader;
    std::vector<WantedImage> wanted_;
    std::function<void()> on_finished_;
    std::atomic<bool> cancelled_{false};
    // The loader's mutex guards the rest.
    size_t next_ = 0;
    int running_ = 0;
    bool in_line_ = false;
    bool finished_ = false;
    std::optional<Error> error_;
  };

  // `on_finished` is called once, from a thread of the loader: every picture is there, or one of them will
  // not be. Errors: an address that is refused at once (ImageSource::check), too many pictures (kInvalid),
  // too many under way (kUnavailable). An Error's param is the picture's field.
  Result<std::shared_ptr<Load>> start(std::vector<WantedImage> wanted, std::function<void()> on_finished);

  struct State {
    bool finished = false;
    std::optional<Error> error;  // the first; ImageSource::load's, or kUnavailable
  };
  State state(const Load& load) const;
  // Nobody waits for it any more; on_finished may still be called if it is about to be.
  static void give_up(Load& load) { load.cancelled_ = true; }

  const ImageRules& rules() const { return source_.rules(); }

 private:
  void work(size_t thread);
  void put_in_line(const std::shared_ptr<Load>& load);
  void start_threads();
  Result<void> keep(WantedImage& wanted, std::string bytes);

  const ImageSource source_;
  const std::shared_ptr<std::atomic<size_t>> held_ = std::make_shared<std::atomic<size_t>>(0);

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Load>> line_;      // of loads with a picture to begin
  std::vector<std::shared_ptr<Load>> at_work_;  // by thread
  size_t waiting_images_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace jewel
