// Stands in until the intrinsics are there.
#pragma once
