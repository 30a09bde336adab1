"""What a quantized KV cache costs in answers: recall, and how far next-token distributions move.

The cache is llama.cpp's own, as a served request meets it where llama.cpp reads the prompt: K and V
are quantized as they enter the cache, before anything attends to them, in the prompt's chunks and
in every step after it. So context is read in chunks, questions behind it, and answers a token at a
time, with the right tokens put in whatever the model would have said (teacher forcing): two caches
then see the same text, and greedy decoding gives the answer exactly when each of its tokens is the
most likely one.

The torch engine's rows are packed once at the end, from attention that saw none of the rounding of
the layers and tokens before; they are not measured here.
"""
