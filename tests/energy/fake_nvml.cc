// A stand-in for libnvidia-ml.so.1 with one GPU, whose counter a test sets. Only what Jewel calls.
extern "C" {

static unsigned long long millijoules = 0;
static int energy_error = 0;
static int open_count = 0;

[[gnu::visibility("default")]] void fake_nvml_set(unsigned long long value, int error) {
  millijoules = value;
  energy_error = error;
}
[[gnu::visibility("default")]] int fake_nvml_open() {
  return open_count;
}

[[gnu::visibility("default")]] int nvmlInit_v2() {
  ++open_count;
  return 0;
}
[[gnu::visibility("default")]] int nvmlShutdown() {
  --open_count;
  return 0;
}
[[gnu::visibility("default")]] const char* nvmlErrorString(int error) {
  return error == 3 ? "Not Supported" : "Invalid Argument";
}
[[gnu::visibility("default")]] int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = &millijoules;
  return index == 0 ? 0 : 2;
}
[[gnu::visibility("default")]] int nvmlDeviceGetName(void*, char* name, unsigned) {
  for (const char* from = "Fake L4"; (*name++ = *from) != '\0'; ++from) {
  }
  return 0;
}
[[gnu::visibility("default")]] int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* value) {
  *value = millijoules;
  return energy_error;
}
[[gnu::visibility("default")]] int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
  *celsius = 41;
  return 0;
}
[[gnu::visibility("default")]] int nvmlDeviceGetClockInfo(void*, int which, unsigned* mhz) {
  *mhz = which == 1 ? 1980 : 6251;
  return 0;
}
}
