# rust/textkit: the one Rust static library, built by cargo from the committed lock file. All presets share one target
# folder, since cargo locks it and the library does not depend on the C++ build type.
find_program(CARGO cargo REQUIRED HINTS $ENV{HOME}/.cargo/bin)
set(TEXTKIT_DIR ${CMAKE_SOURCE_DIR}/rust/textkit)
set(TEXTKIT_TARGET ${CMAKE_SOURCE_DIR}/build/cargo)
set(TEXTKIT_LIB ${TEXTKIT_TARGET}/release/libtextkit.a)

file(GLOB TEXTKIT_SOURCES CONFIGURE_DEPENDS ${TEXTKIT_DIR}/src/*.rs)
add_custom_command(
  OUTPUT ${TEXTKIT_LIB}
  COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${TEXTKIT_TARGET}
          ${CARGO} build --release --locked --quiet --manifest-path ${TEXTKIT_DIR}/Cargo.toml
  DEPENDS ${TEXTKIT_SOURCES} ${TEXTKIT_DIR}/Cargo.toml ${TEXTKIT_DIR}/Cargo.lock
  COMMENT "textkit (cargo; the first build takes a few minutes)"
  USES_TERMINAL VERBATIM)
add_custom_target(textkit_build DEPENDS ${TEXTKIT_LIB})

add_library(jewel_textkit STATIC IMPORTED GLOBAL)
set_target_properties(jewel_textkit PROPERTIES IMPORTED_LOCATION ${TEXTKIT_LIB})
target_include_directories(jewel_textkit INTERFACE ${TEXTKIT_DIR}/include)
target_link_libraries(jewel_textkit INTERFACE Threads::Threads ${CMAKE_DL_LIBS} m)
add_dependencies(jewel_textkit textkit_build)
