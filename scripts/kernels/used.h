// Whether the kernels written for this project are used: always, but where APPLIANCE_KERNELS=0 asks for ggml's own, to compare.
#pragma once

#include <cstdlib>
#include <cstring>

namespace appliance {

static inline bool used() {
    static const bool used = [] {
        const char * said = getenv("APPLIANCE_KERNELS");
        return said == nullptr || strcmp(said, "0") != 0;
    }();
    return used;
}

}  // namespace appliance
