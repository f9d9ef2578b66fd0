#include "arguments.h"
#include "core/common/memory_pool.h"

namespace py = pybind11;

namespace smile_fast::bindings {

void bind_memory(py::module_& module) {
  py::class_<Memory>(module, "Memory", py::buffer_protocol(), "Bytes with unspecified contents, from a pool.")
      .def(py::init<std::size_t>(), py::arg("bytes"))
      .def_buffer([](Memory& memory) {
        return py::buffer_info(static_cast<unsigned char*>(memory.data()), static_cast<py::ssize_t>(memory.size()));
      });
}

}  // namespace smile_fast::bindings
