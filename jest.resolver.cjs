// In our own TypeScript, './x.js' means './x.ts'.
module.exports = (path, options) => {
  if (/^\.{1,2}\/.*\.js$/.test(path) && !options.basedir.includes('/node_modules/')) {
    try {
      return options.defaultResolver(path.slice(0, -3) + '.ts', options);
    } catch {
      // no TypeScript file of that name: resolve as it stands
    }
  }
  return options.defaultResolver(path, options);
};
