// The reply to a request for text: submits it to the engine and sends what comes, whole or as server-sent
// events. Destroying it cancels what is under way: the client is gone.
#pragma once

#include <memory>

#include "jewel/engine.h"
#include "server/http/message.h"
#include "server/openai/answer_writer.h"
#include "server/openai/asked.h"
#include "server/openai/metrics.h"

namespace jewel {

// `id` is the HTTP request's. The engine outlives the reply.
std::unique_ptr<PendingReply> make_answer_reply(Engine& engine, std::shared_ptr<Metrics> metrics, Asked asked,
                                                const std::string& id);

}  // namespace jewel
