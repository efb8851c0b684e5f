#include "server/openai/with_images.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <utility>

namespace jewel {
namespace {

int status_for(const Error& error) {
  switch (error.code) {
    case ErrorCode::kNotFound:
      return 422;
    case ErrorCode::kUnsupported:
      return 501;
    case ErrorCode::kUnavailable:
    case ErrorCode::kCancelled:
      return 503;
    default:
      return 400;
  }
}

class AfterImages final : public PendingReply {
 public:
  AfterImages(ImageLoader& loader, std::vector<WantedImage> wanted, std::function<Reply()> then,
              ErrorReply error)
      : loader_(loader), wanted_(std::move(wanted)), then_(std::move(then)), error_(std::move(error)) {}

  ~AfterImages() override {
    if (load_ != nullptr) ImageLoader::give_up(*load_);
  }

  void start(std::function<void()> wake) override {
    wake_ = wake;
    auto load = loader_.start(std::move(wanted_), wake);
    if (load.ok()) {
      load_ = *std::move(load);
    } else {
      refused_ = std::move(load).error();
      wake();
    }
  }

  Progress take() override {
    if (inner_ != nullptr) return inner_->take();
    if (stopping_) return end_with(503, "the server is shutting down; try again, or another one", {});
    if (!refused_) {
      ImageLoader::State state = loader_.state(*load_);
      if (!state.finished) return {};
      refused_ = std::move(state.error);
    }
    if (refused_) {
      const bool of_picture = !refused_->param.empty() && refused_->param != "images";
      return end_with(
          status_for(*refused_),
          of_picture ? fmt::format("{}: {}", refused_->param, refused_->message) : refused_->message,
          of_picture ? "image_url" : refused_->param);
    }
    Reply reply = then_();
    if (auto* pending = std::get_if<std::unique_ptr<PendingReply>>(&reply)) {
      inner_ = std::move(*pending);
      inner_->start(wake_);
      return inner_->take();
    }
    Progress progress;
    progress.head = std::make_unique<ServerResponse>(std::move(std::get<ServerResponse>(reply)));
    progress.done = true;
    return progress;
  }

  void stop() override {
    stopping_ = true;
    if (inner_ != nullptr) inner_->stop();
  }

 private:
  Progress end_with(int status, std::string_view message, std::string_view param) const {
    Progress progress;
    progress.head = std::make_unique<ServerResponse>(error_(status, message, param));
    progress.done = true;
    return progress;
  }

  ImageLoader& loader_;
  std::vector<WantedImage> wanted_;
  const std::function<Reply()> then_;
  const ErrorReply error_;
  std::function<void()> wake_;
  std::shared_ptr<ImageLoader::Load> load_;
  std::optional<Error> refused_;
  std::unique_ptr<PendingReply> inner_;
  bool stopping_ = false;
};

}  // namespace

Reply with_images(ImageLoader& loader, std::vector<WantedImage> wanted, std::function<Reply()> then,
                  ErrorReply error) {
  if (wanted.empty()) return then();
  return std::make_unique<AfterImages>(loader, std::move(wanted), std::move(then), std::move(error));
}

}  // namespace jewel
