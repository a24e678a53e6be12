"""The embedded model backend: Ollama's protocol over llama.cpp, for machines without an Ollama server.

| file | idea |
|---|---|
| `__main__` | the command line and the server process |
| `app`, `guard`, `answers` | routes; who may call; one answer, streamed or whole |
| `protocol`, `durations`, `cards` | request bodies and error shape; Go durations; how models are described |
| `generation`, `prompts`, `embedding`, `pull` | what the routes do |
| `scheduler` | which models are loaded, which waits, which goes |
| `runner`, `runner_child`, `lifeline`, `engine` | the process of a loaded model, its inside, its end, its client |
| `installed`, `gguf`, `digests` | the models on disk |
| `model_file`, `fetch` | getting the default model |

Nothing is imported here: `model_file` must not need a web framework, nor a runner's process the rest.
"""
