// Loads a model, asks it about a picture, prints the answer as it comes:
//
//   describe_image models/jewel-demo sign.png "What does it say?"
#include <jewel/engine.h>

#include <fstream>
#include <iostream>
#include <iterator>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: describe_image MODEL PICTURE QUESTION\n";
    return 2;
  }
  auto engine = jewel::Engine::load(argv[1]);
  if (!engine) {
    std::cerr << engine.error().message << '\n';
    return 1;
  }
  std::ifstream file(argv[2], std::ios::binary);
  std::string picture((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());

  jewel::Request request{.messages = {jewel::image_message({picture}, argv[3])}, .max_tokens = 200};
  request.sampling.temperature = 0;
  auto stream = (*engine)->submit(request);
  if (!stream) {
    std::cerr << stream.error().message << '\n';
    return 1;
  }
  while (auto update = stream->next()) {
    std::cout << update->content() << std::flush;
    if (update->finish && update->finish->error) {
      std::cerr << update->finish->error->message << '\n';
      return 1;
    }
  }
  std::cout << '\n';
}
