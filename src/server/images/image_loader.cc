#include "server/images/image_loader.h"

#include <fmt/format.h>

#include <utility>

namespace jewel {
namespace {

constexpr size_t kThreads = 8;  // they wait for others' servers, not for our cores
constexpr int kAtOnce = 4;      // of one request
constexpr size_t kMaxWaitingImages = 1024;

Error with_field(Error error, const std::string& field) {
  error.param = field;
  return error;
}

}  // namespace

ImageLoader::ImageLoader(ImageRules rules) : source_(std::move(rules)) {}

ImageLoader::~ImageLoader() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    for (const auto& load : at_work_) {
      if (load != nullptr) load->cancelled_ = true;
    }
    line_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ImageLoader::start_threads() {
  if (!threads_.empty()) return;
  at_work_.resize(kThreads);
  for (size_t i = 0; i < kThreads; ++i) threads_.emplace_back([this, i] { work(i); });
}

Result<std::shared_ptr<ImageLoader::Load>> ImageLoader::start(std::vector<WantedImage> wanted,
                                                              std::function<void()> on_finished) {
  if (wanted.size() > static_cast<size_t>(rules().max_images)) {
    return invalid(fmt::format("images: found {}; at most {} image(s) may be provided in one request",
                               wanted.size(), rules().max_images),
                   "images");
  }
  for (const WantedImage& image : wanted) {
    if (auto good = source_.check(image.url); !good.ok())
      return with_field(std::move(good).error(), image.field);
  }
  const size_t images = wanted.size();
  auto load = std::make_shared<Load>(std::move(wanted), std::move(on_finished));
  {
    const std::scoped_lock lock(mutex_);
    if (waiting_images_ + images > kMaxWaitingImages)
      return unavailable("too many pictures are being fetched; try again in a moment, or send data URLs");
    waiting_images_ += images;
    start_threads();
    put_in_line(load);
  }
  wake_.notify_one();
  return load;
}

ImageLoader::State ImageLoader::state(const Load& load) const {
  const std::scoped_lock lock(mutex_);
  return {.finished = load.finished_, .error = load.error_};
}

void ImageLoader::put_in_line(const std::shared_ptr<Load>& load) {
  if (load->in_line_ || load->next_ >= load->wanted_.size() || load->running_ >= kAtOnce) return;
  load->in_line_ = true;
  line_.push_back(load);
}

// The bytes become the request's, if there is room for them.
Result<void> ImageLoader::keep(WantedImage& wanted, std::string bytes) {
  if (held_->fetch_add(bytes.size()) + bytes.size() > rules().max_held_bytes) {
    *held_ -= bytes.size();
    return unavailable("too many large pictures are in use; try again in a moment");
  }
  wanted.image->bytes = std::move(bytes);
  wanted.image->held = held_;
  return {};
}

void ImageLoader::work(size_t thread) {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stopping_ || !line_.empty(); });
    if (stopping_) return;
    const std::shared_ptr<Load> load = std::move(line_.front());
    line_.pop_front();
    load->in_line_ = false;
    if (load->cancelled_ || load->finished_) {  // those that were not begun leave the books
      waiting_images_ -= load->wanted_.size() - std::exchange(load->next_, load->wanted_.size());
      continue;
    }
    WantedImage& wanted = load->wanted_[load->next_++];
    --waiting_images_;
    ++load->running_;
    at_work_[thread] = load;
    put_in_line(load);  // behind the others: everybody's first picture comes before anybody's second
    if (load->in_line_) wake_.notify_one();
    lock.unlock();

    auto bytes = source_.load(wanted.url, load->cancelled_);
    Result<void> kept;
    if (!bytes.ok())
      kept = std::move(bytes).error();
    else if (!load->cancelled_)
      kept = keep(wanted, *std::move(bytes));

    lock.lock();
    at_work_[thread] = nullptr;
    --load->running_;
    const bool told = load->finished_;
    if (!kept.ok() && !told) {
      load->error_ = with_field(std::move(kept).error(), wanted.field);
      load->cancelled_ = true;  // the others are of no use
      load->finished_ = true;
      waiting_images_ -= load->wanted_.size() - std::exchange(load->next_, load->wanted_.size());
    } else if (!told) {
      put_in_line(load);
      load->finished_ = load->running_ == 0 && load->next_ == load->wanted_.size();
    }
    if (!told && load->finished_ && !stopping_) {
      lock.unlock();
      load->on_finished_();
      lock.lock();
    }
  }
}

}  // namespace jewel
