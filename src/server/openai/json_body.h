// A request's body as JSON, in memory that is counted: a body of 64 MiB made of brackets would otherwise grow
// to a gigabyte of values. One thread.
#pragma once

#include <boost/json/memory_resource.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <memory>
#include <string_view>

#include "base/result.h"

namespace jewel {

class JsonBody {
 public:
  // The top level is an object; at most 128 levels, UTF-8, each name's last value counts.
  static Result<std::unique_ptr<JsonBody>> parse(std::string_view text);

  const boost::json::object& object() const { return root_->get_object(); }

 private:
  class Memory final : public boost::json::memory_resource {
   public:
    explicit Memory(size_t limit) : left_(limit) {}

   private:
    void* do_allocate(size_t bytes, size_t alignment) override;
    void do_deallocate(void* p, size_t bytes, size_t alignment) override;
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
    size_t left_;
  };

  explicit JsonBody(size_t limit) : memory_(limit) {}

  Memory memory_;
  std::unique_ptr<boost::json::value> root_;  // gone before its memory
};

}  // namespace jewel
