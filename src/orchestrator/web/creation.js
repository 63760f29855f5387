// Creates instances, each once.
import { createInstance } from './api.js';
import { useRef } from './ui.js';

/** Return an idempotency key: a request that is sent again with it creates no second instance. */
function newRequestId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join('');
}

/** Return a function that creates an instance with the fields of a CreateInstanceRequest, and returns its id. */
export function useCreateInstance() {
  const requestId = useRef(newRequestId());
  return async (fields) => {
    try {
      return await createInstance({ ...fields, requestId: requestId.current });
    } catch (error) {
      // Only a request that may have arrived is sent again with the same key.
      if (!error.isTransient) requestId.current = newRequestId();
      throw error;
    }
  };
}
