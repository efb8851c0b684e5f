// Pictures by address, for every route: what is read from a request may want some (ChatMessages::wanted,
// Asked::wanted), and they are brought before anybody looks at the request's images.
//
//   return with_images(loader, std::move(asked.wanted), [this, asked]() -> Reply { return answer(asked); });
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "server/http/message.h"
#include "server/images/image_loader.h"
#include "server/openai/api_error.h"

namespace jewel {

// An error in the shape of the route: OpenAI's unless said otherwise.
using ErrorReply =
    std::function<ServerResponse(int status, std::string_view message, std::string_view param)>;

// What `then()` gives, once every picture is there: at once when none is wanted, else as the end of a
// PendingReply, so that no thread waits. A picture that cannot be had ends the request: 400 when its address
// is refused, 422 when the address did not give a picture, both with param "image_url" as in vLLM; 501
// without libcurl; 503 when too many are under way. `then` is called on a thread of the HTTP server. A client
// that goes away ends the fetching. The loader outlives the reply.
Reply with_images(
    ImageLoader& loader, std::vector<WantedImage> wanted, std::function<Reply()> then,
    ErrorReply error = [](int status, std::string_view message, std::string_view param) {
      return error_response(status, message, param);
    });

}  // namespace jewel
